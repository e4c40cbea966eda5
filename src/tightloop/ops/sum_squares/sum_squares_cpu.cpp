#include <algorithm>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {
namespace {

TL_INLINE double widen(float x) {
  return static_cast<double>(x);
}
TL_INLINE double widen(bf16 x) {
  return static_cast<double>(to_float(x));
}

template <typename T>
TL_INLINE double sum_of(const T* x, int64_t n) {
  double lane[32] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += widen(x[i + j]) * widen(x[i + j]);
  }
  for (int64_t j = 0; i < n; ++i, ++j) lane[j] += widen(x[i]) * widen(x[i]);
  return sum_lanes(lane);
}

TL_CLONES double sum_block(const float* x, int64_t n) {
  return sum_of(x, n);
}
TL_CLONES double sum_block(const bf16* x, int64_t n) {
  return sum_of(x, n);
}

template <typename T>
double sum_all(const T* x, int64_t n, double* partial) {
  std::fill(partial, partial + kSumSquaresBlocks, 0.0);
  parallel_parts(n, kSumSquaresBlocks, [&](int64_t begin, int64_t end, int part) {
    partial[part] = sum_block(x + begin, end - begin);
  });
  double total = 0.0;
  for (int64_t part = 0; part < kSumSquaresBlocks; ++part) total += partial[part];
  return total;
}

}  // namespace

void sum_squares_cpu(const ConstTensorView& x, const TensorView& acc, double* scratch) {
  const int64_t n = x.elems();
  *acc.as<double>() += x.dtype() == DType::bf16 ? sum_all(x.as<bf16>(), n, scratch)
                                                : sum_all(x.as<float>(), n, scratch);
}

}  // namespace tightloop
