#pragma once

#include "tightloop/ops/attention_cached/attention_cached.h"

namespace tightloop {

void attention_cached_ref(const AttentionCached& args, int64_t pos);
void attention_cached_cpu(const AttentionCached& args, int64_t pos, std::span<std::byte> scratch);
/// Scratch of the CPU kernel for q (B, Tc, H, D), caches (B, Hkv, S, D) and the current thread
/// count.
int64_t attention_cached_scratch_bytes(const Shape& q, const Shape& cache, int64_t window);

}  // namespace tightloop
