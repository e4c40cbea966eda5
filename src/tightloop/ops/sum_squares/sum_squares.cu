#include <algorithm>

#include "tightloop/ops/common/cuda_kernel.cuh"
#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;              // elements a thread loads at once
constexpr int64_t kPacksAThread = 4;  // at least, before there are more blocks

template <typename T>
__device__ double square(const T* x) {
  const auto wide = static_cast<double>(load_as_float(x));
  return wide * wide;
}

/// partial[block] = sum of squares of the packs that the block meets striding over x.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    partial_sums(const T* x, double* partial, int64_t count) {
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t packs = count / N;
  double sum = 0.0;
  for (int64_t i = thread; i < packs; i += gridDim.x * static_cast<int64_t>(kThreads)) {
    const auto pack = reinterpret_cast<const Pack<T, N>*>(x)[i];
#pragma unroll
    for (int j = 0; j < N; ++j) sum += square(pack.at + j);
  }
  const int64_t i = packs * N + thread;
  if (i < count) sum += square(x + i);
  sum = block_sum_f64<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_partial_sums(const double* partial, double* acc, int blocks) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) sum += partial[i];
  sum = block_sum_f64<kThreads>(sum);
  if (threadIdx.x == 0) *acc += sum;
}

}  // namespace

void sum_squares_cuda(const Exec& exec, const SumSquares& a) {
  const int64_t count = a.x.elems();
  if (count == 0) return;
  // The number of blocks follows from the size alone, so bits repeat on every card.
  const auto blocks = static_cast<int>(
      std::min<int64_t>(kSumSquaresCudaBlocks, grid_for(count, kThreads * kPack * kPacksAThread)));
  auto* partial = reinterpret_cast<double*>(exec.scratch.data());
  with_cuda_type(a.x.dtype(), "sum_squares", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* x = a.x.as<T>();
    const auto kernel = aligned_for_packs(x) ? partial_sums<T, kPack> : partial_sums<T, 1>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, cuda_stream(exec)>>>(x, partial, count);
  });
  add_partial_sums<<<1, kThreads, 0, cuda_stream(exec)>>>(partial, a.acc.as<double>(), blocks);
  cuda::check_launch("sum_squares");
}

}  // namespace tightloop
