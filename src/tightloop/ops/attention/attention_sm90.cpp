#include "tightloop/ops/attention/attention_sm90.h"

#include <atomic>

#include "tightloop/core/cuda_device.h"

namespace tightloop {
namespace {

std::atomic<bool> enabled = true;

}  // namespace

int64_t attention_sm90_query_tiles(const Shape& q) {
  return q[0] * q[2] * ((q[1] + 63) / 64);
}

bool attention_bwd_sm90_takes(const Type& q, const Type& k) {
  static const bool on_hopper = cuda::device_count() > 0 && cuda::device_info().compute_major == 9;
  constexpr int64_t kMost = int64_t{1} << 30;
  return on_hopper && enabled && !cuda::generic_arch() && q.dtype == DType::bf16 &&
         q.shape[3] == 128 && q.shape[1] < kMost && q.shape[2] * 128 < kMost &&
         attention_sm90_query_tiles(q.shape) < kMost && attention_sm90_query_tiles(k.shape) < kMost;
}

int64_t attention_bwd_sm90_scratch_bytes(const Type& q) {
  return attention_sm90_query_tiles(q.shape) * kAttentionSm90TileBytes + 4;
}

bool set_sm90_attention(bool on) {
  return enabled.exchange(on);
}

}  // namespace tightloop
