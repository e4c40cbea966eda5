#pragma once

// What kernels over the rows of stacks of f32 matrices share: Muon's and polar_express's.

#include "tightloop/ops/common/cuda_pack.cuh"

namespace tightloop {

constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kRowPiece = 512;    // columns of a row that one warp takes
constexpr int kRowPack = 4;       // elements a lane moves at once, where columns are a multiple
constexpr int kMostStacked = 64;  // matrices of one shape in one launch

/// Where the rows of a stack's matrices are: of operands, each matrix somewhere else, …
template <typename T>
struct OperandRows {
  T* at[kMostStacked];
  int64_t rows, cols;

  __device__ T* row(int matrix, int64_t r) const { return at[matrix] + r * cols; }
  /// From one row of a matrix to its next.
  __device__ int64_t pitch() const { return cols; }
};
/// … or of matrices in the scratch, one after the other.
template <typename T>
struct StackRows {
  T* first;
  int64_t stride, ld;

  __device__ T* row(int matrix, int64_t r) const { return first + matrix * stride + r * ld; }
  __device__ int64_t pitch() const { return ld; }
};

/// The order in which a pass takes its matrices and their rows. A pass that goes against the one
/// before it finds in the last cache what that one touched last.
enum class Pass { forwards, backwards };

/// A block's place in a grid of (parts of a matrix, matrices).
struct StackPlace {
  unsigned part;
  int matrix;

  __device__ explicit StackPlace(Pass pass)
      : part(pass == Pass::forwards ? blockIdx.x : gridDim.x - 1 - blockIdx.x),
        matrix(static_cast<int>(pass == Pass::forwards ? blockIdx.y : gridDim.y - 1 - blockIdx.y)) {
  }
};

template <int N>
__device__ float squares_of_pack(const float (&values)[N]) {
  float sum = values[0] * values[0];
#pragma unroll
  for (int j = 1; j < N; ++j) sum += values[j] * values[j];
  return sum;
}

/// squares[matrix * rows + r] = the sum of row r's squares: products and sums of packs in f32, the
/// rest in float64. A warp takes a row.
template <int N, typename Rows>
__global__ void __launch_bounds__(kRowThreads) sum_row_squares(
    const __grid_constant__ Rows x, double* squares, int64_t rows, int64_t cols, Pass pass) {
  const StackPlace place(pass);
  const int64_t row = static_cast<int64_t>(place.part) * kRowWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const auto* of_row = x.row(place.matrix, row);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  double sum = 0.0;
#pragma unroll 4
  for (int64_t c = lane * N; c < cols; c += kWarp * N) {
    float values[N];
    load_floats<N>(of_row + c, values);
    sum += static_cast<double>(squares_of_pack(values));
  }
  sum = warp_sum_f64(sum);
  if (lane == 0) squares[place.matrix * rows + row] = sum;
}

/// Packs: every row of x starts at a pack of kRowPack elements.
template <typename Rows>
void sum_row_squares_cuda(const Exec& exec,
                          const Rows& x,
                          double* squares,
                          int64_t matrices,
                          int64_t rows,
                          int64_t cols,
                          bool packs,
                          Pass pass = Pass::forwards) {
  const auto kernel = packs ? sum_row_squares<kRowPack, Rows> : sum_row_squares<1, Rows>;
  const dim3 grid(grid_for(rows, kRowWarps), static_cast<unsigned>(matrices));
  kernel<<<grid, kRowThreads, 0, cuda_stream(exec)>>>(x, squares, rows, cols, pass);
}

inline dim3 row_piece_grid(int64_t matrices, int64_t rows, int64_t cols) {
  const int64_t pieces = (cols + kRowPiece - 1) / kRowPiece;
  return dim3(grid_for((rows + kRowWarps - 1) / kRowWarps * pieces, 1),
              static_cast<unsigned>(matrices));
}

/// What a lane takes in a kernel of row_piece_grid() blocks of kRowThreads: packs of N elements of
/// one row, kWarp * N columns apart. All are to be loaded before the first is stored.
template <int N>
struct RowPiece {
  static constexpr int kPacks = kRowPiece / (kWarp * N);
  int matrix;
  int64_t row, col;  // col: of the first pack
  int64_t left;      // columns from there on; none beyond the last row

  __device__ RowPiece(int64_t rows, int64_t cols, Pass pass) {
    const StackPlace place(pass);
    const auto pieces = static_cast<unsigned>((cols + kRowPiece - 1) / kRowPiece);
    matrix = place.matrix;
    row = static_cast<int64_t>(place.part / pieces) * kRowWarps + threadIdx.x / kWarp;
    col = static_cast<int64_t>(place.part % pieces) * kRowPiece + threadIdx.x % kWarp * N;
    left = row < rows ? cols - col : 0;
  }
  __device__ bool holds(int pack) const { return pack * kWarp * N < left; }
};

}  // namespace tightloop
