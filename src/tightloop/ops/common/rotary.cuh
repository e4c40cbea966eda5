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

/// (a, b) rotated by the table row; sign -1 rotates back. With N > 1 the table starts at a multiple
/// of 16 bytes and half is a multiple of N.
template <int N>
__device__ inline void rotate(
    float (&a)[N], float (&b)[N], const float* cos_sin, int64_t j, int64_t half, float sign) {
  constexpr int kAtOnce = N < 4 ? N : 4;
#pragma unroll
  for (int first = 0; first < N; first += kAtOnce) {
    float cos[kAtOnce], sin[kAtOnce];
    load_floats(cos_sin + j + first, cos), load_floats(cos_sin + half + j + first, sin);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k;
      const float s = sign * sin[k], x = a[i];
      a[i] = x * cos[k] + b[i] * s;
      b[i] = b[i] * cos[k] - x * s;
    }
  }
}

}  // namespace tightloop
