#pragma once

#include "tightloop/ops/common/cuda_lanes.cuh"

/// Rotary embedding on the device: a few lanes share a head, each with N neighbours of both halves.
namespace tightloop {

/// Division by a number known at the launch, 1 to 2^31 - 1, of numbers below 2^31: a product and a
/// shift. 2^32 + factor is 2^(32 + shift) / by, rounded up.
/// Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication (1994).
struct Divisor {
  unsigned by, factor = 0;
  int shift = 0;

  explicit Divisor(int64_t number) : by(static_cast<unsigned>(number)) {
    const auto d = static_cast<uint64_t>(number);
    while (uint64_t{1} << shift < d) ++shift;
    factor = static_cast<unsigned>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }
  __device__ unsigned quotient(unsigned n) const { return (__umulhi(n, factor) + n) >> shift; }
  __device__ unsigned remainder(unsigned n) const { return n - quotient(n) * by; }
};

/// The table and where the heads of a token of (B * T) find their angles in it.
struct Angles {
  const float* table;
  const int32_t* pos;  // null for 0
  int64_t table_rows;
  Divisor tokens, heads;
  int dim;

  /// Cosines, then sines. A position outside the table, which the host cannot see, reads its edge.
  __device__ const float* of_token(unsigned token) const {
    const int64_t first = pos == nullptr ? 0 : *pos;
    const int64_t angle = first + tokens.remainder(token);
    return table + max(int64_t{0}, min(angle, table_rows - 1)) * dim;
  }
  /// Of a head, a row of (B * T * H).
  __device__ const float* of_row(int64_t row) const {
    return of_token(heads.quotient(static_cast<unsigned>(row)));
  }
};

/// Angles of x (B, T, H, D), not empty. Error{unsupported} when B * T * H or D does not fit in
/// 31 bits.
inline Angles angles_of(const char* op,
                        const Shape& x,
                        const ConstTensorView& table,
                        const ConstTensorView& pos) {
  if (x.rows() > 0x7fffffff || x[3] > 0x7fffffff)
    fail(ErrorKind::unsupported,
         "{} on cuda: {} heads of {} elements, at most {} of either are possible", op, x.rows(),
         x[3], 0x7fffffff);
  return {.table = table.as<float>(),
          .pos = pos.empty() ? nullptr : pos.as<int32_t>(),
          .table_rows = table.shape()[0],
          .tokens = Divisor(x[1]),
          .heads = Divisor(x[2]),
          .dim = static_cast<int>(x[3])};
}

/// Cosines and sines of N neighbours.
template <int N>
struct Turn {
  float cos[N], sin[N];

  /// With N > 1 the table starts at a multiple of 16 bytes and half is a multiple of N.
  __device__ void load(const float* cos_sin, int j, int half) {
    constexpr int kAtOnce = N < 4 ? N : 4;
    Stored<float, kAtOnce> c[N / kAtOnce], s[N / kAtOnce];
#pragma unroll
    for (int i = 0; i < N / kAtOnce; ++i) {
      c[i].load(cos_sin + j + i * kAtOnce), s[i].load(cos_sin + half + j + i * kAtOnce);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      cos[i] = c[i / kAtOnce].at(i % kAtOnce), sin[i] = s[i / kAtOnce].at(i % kAtOnce);
    }
  }
  /// (a, b) rotated; sign -1 rotates back.
  __device__ void rotate(float (&a)[N], float (&b)[N], float sign) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float s = sign * sin[i], x = a[i];
      a[i] = x * cos[i] + b[i] * s;
      b[i] = b[i] * cos[i] - x * s;
    }
  }
};

}  // namespace tightloop
