#include "tightloop/ops/common/cuda_rows.cuh"

namespace tightloop {
namespace {

constexpr int kWarps = kRowThreads / kWarp;
constexpr int64_t kWideRow = 1024;  // columns from which a whole block takes a row

/// What one of `lanes` threads adds to a row's sum.
template <int N>
__device__ double part_of_row(const float* x, int64_t cols, int lane, int lanes) {
  double sum = 0.0;
  for (int64_t i = lane; i < cols / N; i += lanes) {
    const auto pack = reinterpret_cast<const Pack<float, N>*>(x)[i];
#pragma unroll
    for (int j = 0; j < N; ++j) sum += static_cast<double>(pack.at[j] * pack.at[j]);
  }
  return sum;
}

template <int N>
__global__ void __launch_bounds__(kRowThreads)
    squares_by_warps(const float* x, double* squares, int64_t rows, int64_t cols) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const double sum = warp_sum_f64(part_of_row<N>(x + row * cols, cols, lane, kWarp));
  if (lane == 0) squares[row] = sum;
}

template <int N>
__global__ void __launch_bounds__(kRowThreads)
    squares_by_blocks(const float* x, double* squares, int64_t cols) {
  const int64_t row = blockIdx.x;
  const double sum = block_sum_f64<kRowThreads>(
      part_of_row<N>(x + row * cols, cols, static_cast<int>(threadIdx.x), kRowThreads));
  if (threadIdx.x == 0) squares[row] = sum;
}

}  // namespace

void row_squares_cuda(
    const Exec& exec, const float* x, int64_t rows, int64_t cols, double* squares) {
  if (rows == 0) return;
  const bool packed = cols % kRowPack == 0 && aligned_for_packs(x);
  if (cols < kWideRow) {
    const auto kernel = packed ? squares_by_warps<kRowPack> : squares_by_warps<1>;
    kernel<<<grid_for(rows, kWarps), kRowThreads, 0, cuda_stream(exec)>>>(x, squares, rows, cols);
  } else {
    const auto kernel = packed ? squares_by_blocks<kRowPack> : squares_by_blocks<1>;
    kernel<<<grid_for(rows, 1), kRowThreads, 0, cuda_stream(exec)>>>(x, squares, cols);
  }
  cuda::check_launch("row squares");
}

}  // namespace tightloop
