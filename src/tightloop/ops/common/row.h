#pragma once

#include <cstdint>

#include "tightloop/ops/common/simd.h"

/// Loops over one row that kernels share. All keep a fixed number of running values, so their bits
/// depend neither on the vector width nor on the thread count.
namespace tightloop {

/// Rows a thread should take at once: about 64 KiB of them.
inline int64_t grain_rows(int64_t cols) {
  const int64_t rows = 16384 / (cols < 1 ? 1 : cols);
  return rows < 1 ? 1 : rows;
}

/// The sum of 32 running sums, by halves.
template <typename T>
TL_INLINE T sum_lanes(T* lane) {
  for (int64_t width = 16; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

/// Σ x[c]*y[c] with 32 running sums.
TL_INLINE float dot_row(const float* x, const float* y, int64_t cols) {
  float lane[32] = {};
  int64_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += x[c + j] * y[c + j];
  }
  for (int64_t j = 0; c < cols; ++c, ++j) lane[j] += x[c] * y[c];
  return sum_lanes(lane);
}

/// Σ x[c]*y[c], products rounded to f32, added in float64: for sums over whole tensors.
TL_INLINE double dot_row_f64(const float* x, const float* y, int64_t cols) {
  double lane[32] = {};
  int64_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += static_cast<double>(x[c + j] * y[c + j]);
  }
  for (int64_t j = 0; c < cols; ++c, ++j) lane[j] += static_cast<double>(x[c] * y[c]);
  return sum_lanes(lane);
}

/// The largest element; NaNs are passed over. cols >= 1.
TL_INLINE float max_row(const float* x, int64_t cols) {
  float lane[32];
  for (int64_t j = 0; j < 32; ++j) lane[j] = x[0];
  int64_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] = x[c + j] > lane[j] ? x[c + j] : lane[j];
  }
  for (int64_t j = 0; c < cols; ++c, ++j) lane[j] = x[c] > lane[j] ? x[c] : lane[j];
  for (int64_t width = 16; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j)
      lane[j] = lane[j + width] > lane[j] ? lane[j + width] : lane[j];
  }
  return lane[0];
}

}  // namespace tightloop
