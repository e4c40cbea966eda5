#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Causal attention with a window, forward. Query i sees the keys max(0, i - window) <= j <= i:
///   s[i,j] = softmax_scale * q[i]·k[j],   lse[i] = log Σ_j e^s[i,j],   o[i] = Σ_j
///   e^(s[i,j]-lse[i]) v[j].
/// Query head h reads key/value head h / (H / Hkv).
/// Shapes: q, o (B, T, H, D); k, v (B, T, Hkv, D), Hkv divides H; lse (B, H, T).
/// Types:  f32, sums in f32; float64 on the reference device; on cuda also bf16, with f32 sums and
///         lse, weights rounded to bf16 before they meet v, and D at most 256.
/// Memory: no T x T matrix: blocks of scores, a running maximum and a running sum per row.
/// Order:  the split into blocks follows the shapes alone: the same bits for any thread count.
/// Errors: Error{shape, dtype}; Error{usage} for a negative window or a scale that is not positive.
/// Source: Dao 2023, arXiv:2307.08691; Milakov and Gimelshein 2018, arXiv:1805.02867.
struct AttentionFwd {
  ConstTensorView q, k, v;
  TensorView o, lse;
  int64_t window;  // keys a query sees before its own; T or more: all of them
  double softmax_scale;
};
void attention_fwd(const Exec& exec, const AttentionFwd& args);

/// Backward. With p[i,j] = e^(s[i,j]-lse[i]) computed again and delta[i] = do[i]·o[i]:
///   ds[i,j] = softmax_scale * p[i,j] * (do[i]·v[j] - delta[i]),
///   dq[i] = Σ_j ds[i,j] k[j],   dk[j] = Σ_i ds[i,j] q[i],   dv[j] = Σ_i p[i,j] do[i],
/// dk and dv summed over the query heads of their group. Shapes, types and order as forward.
struct AttentionBwd {
  ConstTensorView grad_o, q, k, v, o, lse;
  TensorView dq, dk, dv;
  int64_t window;
  double softmax_scale;
};
void attention_bwd(const Exec& exec, const AttentionBwd& args);

/// {o, lse} of AttentionFwd. A gradient that arrives at lse is refused.
std::vector<Value> attention(
    Builder& b, Value q, Value k, Value v, int64_t window, double softmax_scale);

/// What a call on the cuda device runs: "own, Hopper", "cudnn", or "own" where neither serves it.
std::string_view attention_kernel_name(
    const Type& q, const Type& k, int64_t window, double softmax_scale, bool backward);

/// What bf16 attention on the cuda device may run through: "cuDNN 91900", or "own" kernels alone.
std::string attention_library();

/// Pairs (i, j) that T queries see: Σ_i min(i, window) + 1.
int64_t attention_visible_pairs(int64_t tokens, int64_t window);

}  // namespace tightloop
