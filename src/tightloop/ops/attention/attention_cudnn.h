#pragma once

#include <optional>

#include "tightloop/core/exec.h"
#include "tightloop/ops/attention/attention.h"

/// bf16 attention by cuDNN: the same operation, another kernel. The library is loaded at the first
/// use; where it, a Hopper device or the build's support for it is missing, with
/// cuda::generic_arch(), and for what it refuses (heads of more than 128 elements or not of whole
/// 16-byte groups, one token, …), nothing is served and the caller's own kernels do the work.
/// Always the same bits for the same operands.
namespace tightloop {

/// What a plan is made for. q (B, T, H, D), k (B, T, Hkv, D).
struct AttentionProblem {
  Type q, k;
  int64_t window;
  double softmax_scale;
  bool backward;
};

/// Scratch that the calls below need; none where the problem is not served. The first call for a
/// problem makes its plan, which takes about a second.
std::optional<int64_t> cudnn_attention_scratch_bytes(const AttentionProblem& problem);

/// Enqueue the operation; false, with nothing enqueued, where it is not served, a tensor does not
/// start at a multiple of 16 bytes, or exec.scratch is too small.
bool cudnn_attention_fwd(const Exec& exec, const AttentionFwd& args);
bool cudnn_attention_bwd(const Exec& exec, const AttentionBwd& args);

/// The library that would be used, as cuDNN counts (91900 is 9.19.0); 0 for none.
int64_t cudnn_attention_version();

/// For tests and comparisons: with false nothing is served from now on. Returns what was set.
bool set_cudnn_attention(bool enabled);

}  // namespace tightloop
