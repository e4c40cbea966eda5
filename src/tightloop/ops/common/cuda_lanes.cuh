#pragma once

#include "tightloop/ops/common/cuda_pack.cuh"

/// Short rows (heads of 32 to 256 elements): a few lanes of a warp share one, so that a warp takes
/// several.
namespace tightloop {

constexpr int kLaneThreads = 256;

/// Lanes that share a row of `packs` packs: a power of two, at most a warp.
inline int lanes_for(int64_t packs) {
  int lanes = 1;
  while (lanes < kWarp && lanes < packs) lanes *= 2;
  return lanes;
}

/// Blocks of kLaneThreads threads for `rows` rows. Error{unsupported} when they are too many.
inline unsigned lane_blocks(int64_t rows, int lanes) {
  return grid_for(rows, kLaneThreads / lanes);
}

/// Where a thread stands when `lanes` of them share a row. Every thread of a warp gets a row, also
/// beyond the last one, for group_sum; such threads must not touch memory.
struct RowLane {
  int64_t row;
  int lane;
  __device__ explicit RowLane(int lanes) {
    row = (blockIdx.x * static_cast<int64_t>(kLaneThreads) + threadIdx.x) >> (__ffs(lanes) - 1);
    lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  }
};

/// Sum over each group of `lanes` neighbours, in every lane. The whole warp must call it.
__device__ inline float group_sum(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

/// The same of K numbers at once.
template <int K>
__device__ inline void group_sums(float (&x)[K], int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (float& sum : x) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  }
}

}  // namespace tightloop
