#pragma once

// What kernels over the rows of stacks of f32 matrices share: Muon's and polar_express's.

#include "tightloop/ops/common/cuda_pack.cuh"

namespace tightloop {

constexpr int kRowThreads = 256;
constexpr int64_t kRowPiece{512};  // columns of a row that one warp takes
constexpr int kRowPack = 4;        // elements a lane moves at once, where columns are a multiple
constexpr int kMostStacked = 64;   // matrices of one shape in one launch

/// The rows of all matrices, one after the other: of operands, each matrix somewhere else, …
template <typename T>
struct OperandRows {
  T* at[kMostStacked];
  int64_t rows, cols;

  __device__ T* operator()(int64_t r) const { return at[r / rows] + r % rows * cols; }
  /// From one row of a matrix to its next.
  __device__ int64_t pitch() const { return cols; }
};
/// … or of a stack in the scratch.
template <typename T>
struct StackRows {
  T* first;
  int64_t ld;

  __device__ T* operator()(int64_t r) const { return first + r * ld; }
  __device__ int64_t pitch() const { return ld; }
};

/// squares[r] = the sum of row r's squares: products in f32, sums in float64. A warp takes a row.
template <int N, typename Rows>
__global__ void __launch_bounds__(kRowThreads)
    sum_row_squares(const __grid_constant__ Rows x, double* squares, int64_t rows, int64_t cols) {
  constexpr int64_t kWarps = kRowThreads / kWarp;
  const int64_t row = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const auto* of_row = x(row);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  double sum = 0.0;
#pragma unroll 4
  for (int64_t c = lane * N; c < cols; c += kWarp * N) {
    float values[N];
    load_floats<N>(of_row + c, values);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += static_cast<double>(values[j] * values[j]);
  }
  sum = warp_sum_f64(sum);
  if (lane == 0) squares[row] = sum;
}

/// Packs: every row of x starts at a pack of kRowPack elements.
template <typename Rows>
void sum_row_squares_cuda(
    const Exec& exec, const Rows& x, double* squares, int64_t rows, int64_t cols, bool packs) {
  const auto kernel = packs ? sum_row_squares<kRowPack, Rows> : sum_row_squares<1, Rows>;
  kernel<<<grid_for(rows, kRowThreads / kWarp), kRowThreads, 0, cuda_stream(exec)>>>(x, squares,
                                                                                     rows, cols);
}

inline unsigned row_piece_blocks(int64_t rows, int64_t cols) {
  const int64_t pieces = (cols + kRowPiece - 1) / kRowPiece;
  const int64_t warps = kRowThreads / kWarp;
  return grid_for((rows + warps - 1) / warps * pieces, 1);
}

/// Inside a kernel of row_piece_blocks() blocks of kRowThreads: fn(row, column) for the first of
/// every N neighbouring elements, each by one thread; a warp stays in one row.
template <int N, typename Fn>
__device__ void for_row_piece(int64_t rows, int64_t cols, Fn&& fn) {
  const int64_t pieces = (cols + kRowPiece - 1) / kRowPiece;
  const int64_t row = blockIdx.x / pieces * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t begin = blockIdx.x % pieces * kRowPiece;
  const int64_t end = begin + kRowPiece < cols ? begin + kRowPiece : cols;
  for (int64_t c = begin + threadIdx.x % kWarp * N; c < end; c += kWarp * N) fn(row, c);
}

}  // namespace tightloop
