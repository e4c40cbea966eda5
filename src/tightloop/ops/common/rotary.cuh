#pragma once

#include "tightloop/ops/common/cuda_lanes.cuh"

/// Rotary embedding on the device: a few lanes share a head, each with N neighbours of both halves.
namespace tightloop {

/// The table and where a head of row `row` of (B * T * H) finds its angles in it.
struct Angles {
  const float* table;
  const int32_t* pos;  // null for 0
  int64_t table_rows, tokens, heads, dim;

  /// Cosines, then sines. A position outside the table, which the host cannot see, reads its edge.
  __device__ const float* of_row(int64_t row) const {
    const auto token = static_cast<unsigned>(row) / static_cast<unsigned>(heads);
    const int64_t first = pos == nullptr ? 0 : *pos;
    const int64_t angle = first + token % static_cast<unsigned>(tokens);
    return table + max(int64_t{0}, min(angle, table_rows - 1)) * dim;
  }
};

/// Angles of x (B, T, H, D). Error{unsupported} when B * T * H does not fit in 31 bits.
inline Angles angles_of(const char* op,
                        const Shape& x,
                        const ConstTensorView& table,
                        const ConstTensorView& pos) {
  if (x.rows() > 0x7fffffff)
    fail(ErrorKind::unsupported, "{} on cuda: {} heads in all, at most {} are possible", op,
         x.rows(), 0x7fffffff);
  return {table.as<float>(),
          pos.empty() ? nullptr : pos.as<int32_t>(),
          table.shape()[0],
          x[1],
          x[2],
          x[3]};
}

/// (a, b) rotated by the table row; sign -1 rotates back.
template <int N>
__device__ inline void rotate(
    float (&a)[N], float (&b)[N], const float* cos_sin, int64_t j, int64_t half, float sign) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float c = cos_sin[j + i], s = sign * cos_sin[half + j + i], x = a[i];
    a[i] = x * c + b[i] * s;
    b[i] = b[i] * c - x * s;
  }
}

}  // namespace tightloop
