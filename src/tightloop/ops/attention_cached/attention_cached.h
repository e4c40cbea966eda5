#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Attention of Tc new tokens over a key/value cache. Writes k and v at positions pos..pos+Tc-1,
/// then query t, at position i = pos + t, sees the positions max(0, i - window) <= j <= i:
///   o[t] = Σ_j softmax_j(softmax_scale * q[t]·k_cache[j]) v_cache[j].
/// Query head h reads key/value head h / (H / Hkv).
/// Shapes: q, o (B, Tc, H, D); k, v (B, Tc, Hkv, D); caches (B, Hkv, S, D); pos i32 scalar.
/// Types:  f32, sums in f32; caches f32 or bf16 (rounded when written); float64 on the reference.
/// Order:  keys in chunks of fixed positions, merged in order: the same bits for any thread count.
/// Errors: Error{shape, dtype}; Error{usage} when pos < 0 or pos + Tc > S. No gradient.
/// Source: as attention; split over keys: Dao et al. 2023, "Flash-Decoding".
struct AttentionCached {
  ConstTensorView q, k, v, pos;
  TensorView k_cache, v_cache, o;
  int64_t window;
  double softmax_scale;
};
void attention_cached_run(const Exec& exec, const AttentionCached& args);

/// o of AttentionCached.
Value attention_cached(Builder& b,
                       Value q,
                       Value k,
                       Value v,
                       Value pos,
                       Value k_cache,
                       Value v_cache,
                       int64_t window,
                       double softmax_scale);

}  // namespace tightloop
