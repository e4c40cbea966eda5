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
  __device__ float value() const {
    return static_cast<float>(element == nullptr ? constant
                                                 : constant * static_cast<double>(*element));
  }
};

constexpr int kFactorGradientThreads = 1024;

/// *d += constant * sum of the partial sums, in float64 and always in the same order.
static __global__ void __launch_bounds__(kFactorGradientThreads)
    factor_gradient_kernel(const float* partial, int64_t count, double constant, float* d) {
  double sum = 0.0;
#pragma unroll 16
  for (int64_t i = threadIdx.x; i < count; i += kFactorGradientThreads)
    sum += static_cast<double>(partial[i]);
  sum = block_sum_f64<kFactorGradientThreads>(sum);
  if (threadIdx.x == 0) *d += static_cast<float>(constant * sum);
}

inline void add_factor_gradient(
    const Exec& exec, const float* partial, int64_t count, double constant, float* d) {
  factor_gradient_kernel<<<1, kFactorGradientThreads, 0, cuda_stream(exec)>>>(partial, count,
                                                                              constant, d);
}

}  // namespace tightloop
