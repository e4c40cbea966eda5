#pragma once

#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/common/attention_tiles.h"

namespace tightloop {

void attention_fwd_ref(const AttentionFwd& args);
void attention_bwd_ref(const AttentionBwd& args);

using AttentionTiles = attention_detail::Kernels;
void attention_fwd_cpu(const AttentionFwd& args,
                       const AttentionTiles& tiles,
                       std::span<std::byte> scratch);
void attention_bwd_cpu(const AttentionBwd& args,
                       const AttentionTiles& tiles,
                       std::span<std::byte> scratch);

/// Scratch of the CPU kernels for q (B, T, H, D), k (B, T, Hkv, D) and the current thread count.
int64_t attention_fwd_scratch_bytes(const Shape& q, const Shape& k, const AttentionTiles& tiles);
int64_t attention_bwd_scratch_bytes(const Shape& q, const Shape& k, const AttentionTiles& tiles);

void attention_fwd_cuda(const Exec& exec, const AttentionFwd& args);
/// By the Hopper kernel, else cuDNN, else our portable kernels, whose exec.scratch is B * T * H
/// floats.
void attention_bwd_cuda(const Exec& exec, const AttentionBwd& args);

}  // namespace tightloop
