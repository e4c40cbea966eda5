#pragma once

#include "tightloop/ops/common/cuda_kernel.cuh"
#include "tightloop/ops/common/scaled_term.h"

/// The factors of scaled sums on the device, where their vectors are.
namespace tightloop {

struct CudaFactor {
  const float* element;  // null: the constant alone
  double constant;

  CudaFactor(double c, const ConstTensorView& vector, int64_t index)
      : element(vector.empty() ? nullptr : vector.as<float>() + index), constant(c) {}
  /// The vector's element, to be loaded before anything waits …
  __device__ float stored() const { return element == nullptr ? 1.0f : *element; }
  /// … and the factor made of it.
  __device__ float of(float stored) const {
    return static_cast<float>(constant * static_cast<double>(stored));
  }
  __device__ float value() const { return of(stored()); }
};

constexpr int kFactorGradientThreads = 1024;

/// A factor's gradient: element `d` of its vector's (null: none is asked for).
struct CudaFactorGradient {
  double constant;
  float* d;

  CudaFactorGradient(double c, const TensorView& vector, int64_t index)
      : constant(c), d(vector.empty() ? nullptr : vector.as<float>() + index) {}
};

/// *d += constant * sum of the partial sums, in float64 and always in the same order; a block for
/// each factor.
static __global__ void __launch_bounds__(kFactorGradientThreads) factor_gradients(
    const float* partial, int64_t count, CudaFactorGradient a, CudaFactorGradient b) {
  const CudaFactorGradient of = blockIdx.x == 0 ? a : b;
  if (of.d == nullptr) return;
  partial += blockIdx.x * count;
  double sum = 0.0;
#pragma unroll 16
  for (int64_t i = threadIdx.x; i < count; i += kFactorGradientThreads)
    sum += static_cast<double>(partial[i]);
  sum = block_sum_f64<kFactorGradientThreads>(sum);
  if (threadIdx.x == 0) *of.d += static_cast<float>(of.constant * sum);
}

/// `partial`: `count` sums for a, then as many for b.
inline void add_factor_gradients(const Exec& exec,
                                 const float* partial,
                                 int64_t count,
                                 const CudaFactorGradient& a,
                                 const CudaFactorGradient& b) {
  if (a.d == b.d) {  // neither, or one element: one after the other
    if (a.d == nullptr) return;
    const CudaFactorGradient none{0.0, {}, 0};
    add_factor_gradients(exec, partial, count, a, none);
    add_factor_gradients(exec, partial, count, none, b);
    return;
  }
  factor_gradients<<<2, kFactorGradientThreads, 0, cuda_stream(exec)>>>(partial, count, a, b);
}

}  // namespace tightloop
