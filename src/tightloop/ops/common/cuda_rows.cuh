#pragma once

// What kernels over the rows of an f32 matrix share: Muon's and polar_express's.

#include "tightloop/ops/common/cuda_kernel.cuh"

namespace tightloop {

constexpr int kRowThreads = 256;
constexpr int64_t kRowPiece{512};  // columns of a row that one warp takes
constexpr int kRowPack = 4;        // elements a lane moves at once, where columns are a multiple

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

/// squares[r] = sum_c x[r,c]^2: products in f32, sums in float64 in an order fixed by the shape.
void row_squares_cuda(
    const Exec& exec, const float* x, int64_t rows, int64_t cols, double* squares);

}  // namespace tightloop
