#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "tightloop/ops/common/cuda_pack.cuh"
#include "tightloop/ops/common/cuda_rows.cuh"
#include "tightloop/ops/common/gemm_sm90.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {
namespace {

static_assert(kPolarStack <= kMostStacked);
constexpr int kThreads = 1024;  // of the one block that finds the factors of a matrix's rows

/// Sum over all rows of fn(row), in every thread of the block.
template <typename Fn>
__device__ double sum_of_rows(int64_t rows, Fn&& fn) {
  double sum = 0.0;
#pragma unroll 1  // most matrices have a row a thread; what fn divides should be here once
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += fn(r);
  return block_sum_f64<kThreads>(sum);
}

/// Row factors that equilibrate, then scale below norm 1: both from one pass over the matrix, one
/// block each.
__global__ void __launch_bounds__(kThreads) initial_factors(const double* all_squares,
                                                            float* all_factors,
                                                            int64_t rows,
                                                            bool equilibrate,
                                                            double norm_factor) {
  const double* squares = all_squares + blockIdx.x * rows;
  float* row_factor = all_factors + blockIdx.x * rows;
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const double target = sqrt(total / static_cast<double>(rows));
  const auto factor_of = [=](int64_t r) {
    return equilibrate ? target / std::max(sqrt(squares[r]), 1e-6) : 1.0;
  };
  const double scaled =
      sum_of_rows(rows, [=](int64_t r) { return factor_of(r) * factor_of(r) * squares[r]; });
  const double factor = 1.0 / (norm_factor * sqrt(scaled) + 1e-6);
#pragma unroll 1
  for (int64_t r = threadIdx.x; r < rows; r += kThreads)
    row_factor[r] = static_cast<float>(factor_of(r) * factor);
}

/// 1 / the norm of a row, from its squares; 1e6 at most.
__device__ float inverse_norm(double squares) {
  return fminf(rsqrtf(static_cast<float>(squares)), 1e6f);
}

/// y = x with rows of norm 1, and the squares of x's rows. A row takes Lanes threads, a warp or the
/// block, and stays in their registers.
template <int Lanes, int Packs>
__global__ void __launch_bounds__(kRowThreads)
    normalize_rows(const __grid_constant__ OperandRows<const float> x,
                   const StackRows<bf16> y,
                   double* squares) {
  const StackPlace place(Pass::backwards);
  const int64_t row =
      static_cast<int64_t>(place.part) * (kRowThreads / Lanes) + threadIdx.x / Lanes;
  if (row >= x.rows) return;  // by whole warps, or by no thread of the block
  const int64_t col = threadIdx.x % Lanes * kRowPack;
  const float* from = x.row(place.matrix, row) + col;
  bf16* to = y.row(place.matrix, row) + col;
  const auto left = static_cast<int>(x.cols - col);
  float values[Packs][kRowPack];
  double sum = 0.0;
#pragma unroll
  for (int k = 0; k < Packs; ++k)
    if (k * Lanes * kRowPack < left) load_floats<kRowPack>(from + k * Lanes * kRowPack, values[k]);
#pragma unroll
  for (int k = 0; k < Packs; ++k)
    if (k * Lanes * kRowPack < left) sum += static_cast<double>(squares_of_pack(values[k]));
  if constexpr (Lanes == kWarp)
    sum = warp_sum_f64(sum);
  else
    sum = block_sum_f64<Lanes>(sum);
  if (col == 0) squares[place.matrix * x.rows + row] = sum;
  const float factor = inverse_norm(sum);
#pragma unroll
  for (int k = 0; k < Packs; ++k) {
    if (k * Lanes * kRowPack >= left) continue;
#pragma unroll
    for (float& value : values[k]) value *= factor;
    store_floats<kRowPack>(to + k * Lanes * kRowPack, values[k]);
  }
}

constexpr int kPairs = 16;  // of rows, that a block of normalize_transposed turns

/// The same with y transposed; an even number of rows and of columns, of these up to 64 Packs. Two
/// rows stay in a warp's registers; a word of shared memory holds a column's elements of both.
template <int Packs>
__global__ void __launch_bounds__(kRowThreads,
                                  Packs <= 12   ? 3
                                  : Packs <= 20 ? 2
                                                : 1)
    normalize_transposed(const __grid_constant__ OperandRows<const float> x,
                         const StackRows<bf16> y,
                         double* squares) {
  extern __shared__ uint32_t columns[];  // kPairs words each and one between them
  const StackPlace place(Pass::backwards);
  const int64_t row = static_cast<int64_t>(place.part) * (2 * kPairs);
  const auto cols = static_cast<int>(x.cols);
  const int col = threadIdx.x % kWarp * 2;
#pragma unroll 1
  for (int pair = threadIdx.x / kWarp; pair < kPairs; pair += kRowWarps) {
    const int64_t first = row + 2 * pair;
    if (first >= x.rows) break;
    const float* from = x.row(place.matrix, first) + col;
    float values[2][Packs][2], factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k < Packs; ++k)
        if (col + k * 64 < cols) load_floats<2>(from + r * cols + k * 64, values[r][k]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      double sum = 0.0;
#pragma unroll
      for (int k = 0; k < Packs; ++k)
        if (col + k * 64 < cols) sum += static_cast<double>(squares_of_pack(values[r][k]));
      sum = warp_sum_f64(sum);
      if (col == 0) squares[place.matrix * x.rows + first + r] = sum;
      factors[r] = inverse_norm(sum);
    }
#pragma unroll
    for (int k = 0; k < Packs; ++k) {
      if (col + k * 64 >= cols) continue;
      uint32_t* to = columns + (col + k * 64) * (kPairs + 1) + pair;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        to[j * (kPairs + 1)] =
            pack_bf16(values[0][k][j] * factors[0], values[1][k][j] * factors[1]);
    }
  }
  __syncthreads();
  const int pair = threadIdx.x % kPairs;
  if (row + 2 * pair >= x.rows) return;
#pragma unroll 4
  for (int c = threadIdx.x / kPairs; c < cols; c += kRowThreads / kPairs)
    *reinterpret_cast<uint32_t*>(y.row(place.matrix, c) + row + 2 * pair) =
        columns[c * (kPairs + 1) + pair];
}

constexpr int64_t kMostNormalized{8192}, kMostTransposed{2048};

/// y = x with rows of norm 1. Columns up to kMostNormalized or, where y is transposed,
/// kMostTransposed; sides multiples of 8.
void normalize_rows_cuda(const Exec& exec,
                         const OperandRows<const float>& x,
                         const StackRows<bf16>& y,
                         bool transposed,
                         double* squares,
                         int64_t count) {
  const auto matrices = static_cast<unsigned>(count);
  if (!transposed) {
    const bool by_warp = x.cols <= 1024;
    const auto kernel = by_warp          ? normalize_rows<kWarp, 8>
                        : x.cols <= 4096 ? normalize_rows<kRowThreads, 4>
                                         : normalize_rows<kRowThreads, 8>;
    const dim3 grid(grid_for(x.rows, by_warp ? kRowWarps : 1), matrices);
    kernel<<<grid, kRowThreads, 0, cuda_stream(exec)>>>(x, y, squares);
    return;
  }
  const auto kernel = x.cols <= 768    ? normalize_transposed<12>
                      : x.cols <= 1280 ? normalize_transposed<20>
                                       : normalize_transposed<32>;
  const auto bytes = static_cast<int>(x.cols * (kPairs + 1) * 4);
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) !=
      cudaSuccess)
    fail(ErrorKind::device, "polar_express on cuda: {} bytes of shared memory were refused", bytes);
  const dim3 grid(grid_for(x.rows, 2 * kPairs), matrices);
  kernel<<<grid, kRowThreads, bytes, cuda_stream(exec)>>>(x, y, squares);
}

/// What initial_factors() leaves to each matrix once its rows have norm 1, and the square of that:
/// all_factors[matrix] and [matrices + matrix].
__global__ void __launch_bounds__(kThreads) matrix_factors(const double* all_squares,
                                                           float* all_factors,
                                                           int64_t rows,
                                                           double norm_factor) {
  const double* squares = all_squares + blockIdx.x * rows;
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const double scaled = sum_of_rows(rows, [=](int64_t r) {
    const auto factor = static_cast<double>(inverse_norm(squares[r]));
    return factor * factor * squares[r];
  });
  const double target = sqrt(total / static_cast<double>(rows));
  const double factor = target / (norm_factor * target * sqrt(scaled) + 1e-6);
  if (threadIdx.x == 0) {
    all_factors[blockIdx.x] = static_cast<float>(factor);
    all_factors[gridDim.x + blockIdx.x] = static_cast<float>(factor * factor);
  }
}

/// The factor that gives a matrix the norm of an orthogonal one, for each of its rows.
__global__ void __launch_bounds__(kThreads)
    final_factors(const double* all_squares, float* all_factors, int64_t rows, double norm) {
  const double* squares = all_squares + blockIdx.x * rows;
  float* row_factor = all_factors + blockIdx.x * rows;
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const auto factor = static_cast<float>(norm / std::max(sqrt(total), 1e-6));
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) row_factor[r] = factor;
}

/// y = x * row_factor, or y = x without factors.
template <int N, typename From, typename To>
__global__ void __launch_bounds__(kRowThreads) scale_rows(const __grid_constant__ From x,
                                                          const __grid_constant__ To y,
                                                          const float* row_factor,
                                                          int64_t rows,
                                                          int64_t cols,
                                                          Pass pass) {
  const RowPiece<N> piece(rows, cols, pass);
  if (piece.left <= 0) return;
  const auto* from = x.row(piece.matrix, piece.row) + piece.col;
  auto* to = y.row(piece.matrix, piece.row) + piece.col;
  float values[RowPiece<N>::kPacks][N];
#pragma unroll
  for (int k = 0; k < RowPiece<N>::kPacks; ++k)
    if (piece.holds(k)) load_floats<N>(from + k * kWarp * N, values[k]);
  const float factor = row_factor == nullptr ? 1.0f : row_factor[piece.matrix * rows + piece.row];
#pragma unroll
  for (int k = 0; k < RowPiece<N>::kPacks; ++k) {
    if (!piece.holds(k)) continue;
#pragma unroll
    for (float& value : values[k]) value *= factor;
    store_floats<N>(to + k * kWarp * N, values[k]);
  }
}

constexpr int kTile = 64;  // rows and columns that a block of transpose_scaled turns

/// y = transposed(x * row_factor) for every matrix of a stack, x (rows, cols).
template <typename From, typename To>
__global__ void __launch_bounds__(kRowThreads) transpose_scaled(const __grid_constant__ From x,
                                                                const __grid_constant__ To y,
                                                                const float* row_factor,
                                                                int rows,
                                                                int cols,
                                                                Pass pass) {
  __shared__ float tile[kTile][kTile + 1];
  const StackPlace place(pass);
  const int across = (cols + kTile - 1) / kTile, at = static_cast<int>(place.part);
  const int row = at / across * kTile, col = at % across * kTile;
  // Two neighbours a lane, both here and there; a warp takes every eighth row of the tile.
  const int warp = threadIdx.x / kWarp, pair = threadIdx.x % kWarp * 2;
  const auto* from = x.row(place.matrix, row) + col + pair;
  const int64_t factors = static_cast<int64_t>(place.matrix) * rows + row;
#pragma unroll
  for (int r = warp; r < kTile; r += kRowWarps) {
    if (row + r >= rows || col + pair >= cols) continue;
    float values[2];
    load_floats<2>(from + r * x.pitch(), values);
    const float factor = row_factor == nullptr ? 1.0f : row_factor[factors + r];
    tile[r][pair] = values[0] * factor, tile[r][pair + 1] = values[1] * factor;
  }
  __syncthreads();
  auto* to = y.row(place.matrix, col) + row + pair;
#pragma unroll
  for (int c = warp; c < kTile; c += kRowWarps) {
    if (col + c >= cols || row + pair >= rows) continue;
    store_floats<2>(to + c * y.pitch(), {tile[pair][c], tile[pair + 1][c]});
  }
}

/// One call: the stack's shape, and the launches over all of its matrices.
template <typename T>
class Stack {
 public:
  Stack(const Exec& exec, const PolarExpress& a)
      : exec_(exec),
        a_(a),
        count_(static_cast<int64_t>(a.u.size())),
        shape_(a.u[0].shape()),
        side_(std::min(shape_[0], shape_[1])),
        scratch_(count_, shape_, DTypeOf<T>::value, exec.scratch.data()) {
    u_.rows = x_.rows = shape_[0], u_.cols = x_.cols = shape_[1];
    packed_ = shape_[1] % kRowPack == 0;
    for (size_t i = 0; i < a.u.size(); ++i) {
      u_.at[i] = a.u[i].template as<float>(), x_.at[i] = a.x[i].template as<float>();
      packed_ = packed_ && start_at_16_bytes({u_.at[i], x_.at[i]});
    }
    // The kernel for Hopper takes products of rows with rows: a tall matrix is held transposed.
    const bool transposed = shape_[0] > shape_[1] && packed_;
    hold(transposed ? Shape{shape_[1], shape_[0]} : shape_);
    halves_ = gemm_sm90_takes(gram(), gram_batch());
    if (!halves_) hold(shape_);
    by_rows_ = halves_ && packed_ && a.options.row_equilibrate &&
               shape_[1] <= (held_ == shape_ ? kMostNormalized : kMostTransposed);
  }

  void run() {
    normalize();
    for (int64_t k = 0; k < a_.options.steps; ++k)
      step(kPolarSteps[static_cast<size_t>(k)], k == 0 && by_rows_ ? scratch_.row_factor : nullptr);
    if (!a_.options.renormalize) {
      scale(rows_of(scratch_.from), x_, held_, nullptr, Pass::backwards);
    } else {
      find_squares(rows_of(scratch_.from), held_, Pass::backwards);
      final_factors<<<static_cast<unsigned>(count_), kThreads, 0, cuda_stream(exec_)>>>(
          scratch_.row_squares, scratch_.row_factor, held_[0],
          std::sqrt(static_cast<double>(side_)));
      scale(rows_of(scratch_.from), x_, held_, scratch_.row_factor, Pass::forwards);
    }
    cuda::check_launch("polar_express");
  }

 private:
  static constexpr DType kType = DTypeOf<T>::value;

  /// Operands into the stack, below norm 1. Where the first products can take a factor for each
  /// matrix, rows get norm 1 in a single pass; else they wait for the norm of the matrix.
  void normalize() {
    const auto blocks = static_cast<unsigned>(count_);
    if (by_rows_) {
      if constexpr (kType == DType::bf16)
        normalize_rows_cuda(exec_, u_, rows_of(scratch_.from), held_ != shape_,
                            scratch_.row_squares, count_);
      matrix_factors<<<blocks, kThreads, 0, cuda_stream(exec_)>>>(
          scratch_.row_squares, scratch_.row_factor, shape_[0], a_.options.norm_factor);
      return;
    }
    find_squares(u_, shape_, Pass::forwards);
    initial_factors<<<blocks, kThreads, 0, cuda_stream(exec_)>>>(
        scratch_.row_squares, scratch_.row_factor, shape_[0], a_.options.row_equilibrate,
        a_.options.norm_factor);
    scale(u_, rows_of(scratch_.from), shape_, scratch_.row_factor, Pass::backwards);
  }

  /// Matrices of this shape lie in the stack.
  void hold(const Shape& shape) {
    held_ = shape;
    scratch_.ld = (shape[1] + 7) / 8 * 8;
  }

  StackRows<T> rows_of(std::byte* stack) const {
    return {reinterpret_cast<T*>(stack), scratch_.stride, scratch_.ld};
  }

  template <typename Rows>
  void find_squares(const Rows& x, const Shape& shape, Pass pass) {
    sum_row_squares_cuda(exec_, x, scratch_.row_squares, count_, shape[0], shape[1], packed_, pass);
  }

  /// y = x * row_factor, x of this shape; between the stack and the operands, transposed if the
  /// stack is.
  template <typename From, typename To>
  void scale(const From& x, const To& y, const Shape& shape, const float* row_factor, Pass pass) {
    const int64_t rows = shape[0], cols = shape[1];
    if (held_ != shape_) {
      const dim3 grid(grid_for((rows + kTile - 1) / kTile * ((cols + kTile - 1) / kTile), 1),
                      static_cast<unsigned>(count_));
      transpose_scaled<<<grid, kRowThreads, 0, cuda_stream(exec_)>>>(
          x, y, row_factor, static_cast<int>(rows), static_cast<int>(cols), pass);
      return;
    }
    const auto kernel = packed_ ? scale_rows<kRowPack, From, To> : scale_rows<1, From, To>;
    kernel<<<row_piece_grid(count_, rows, cols), kRowThreads, 0, cuda_stream(exec_)>>>(
        x, y, row_factor, rows, cols, pass);
  }

  GemmInput x() const { return {.data = scratch_.from, .dtype = kType, .ld = scratch_.ld}; }
  GemmInput side_matrix(std::byte* data) const {
    return {.data = data, .dtype = kType, .ld = scratch_.side_ld};
  }

  /// A = X X^T, or X^T X where X is tall.
  Gemm gram() const {
    return {.form = held_[0] > held_[1] ? GemmForm::tn : GemmForm::nt,
            .M = side_,
            .N = side_,
            .K = std::max(shape_[0], shape_[1]),
            .a = x(),
            .b = x(),
            .c = {scratch_.gram, kType, scratch_.side_ld},
            .symmetric = true};
  }
  GemmBatch gram_batch() const {
    return {.count = count_,
            .a_stride = scratch_.stride,
            .b_stride = scratch_.stride,
            .c_stride = scratch_.side_stride};
  }

  /// b A + c A^2. The Gram matrix is symmetric, so it may be read by rows on both sides.
  Gemm polynomial() const {
    const GemmInput gram = side_matrix(scratch_.gram);
    return {.form = GemmForm::nt,
            .M = side_,
            .N = side_,
            .K = side_,
            .a = gram,
            .b = gram,
            .c = {scratch_.polynomial, kType, gram.ld},
            .epilogue = GemmEpilogue::add,
            .e = gram,
            .symmetric = true};
  }
  GemmBatch polynomial_batch() const {
    const int64_t of_side = scratch_.side_stride;
    return {.count = count_,
            .a_stride = of_side,
            .b_stride = of_side,
            .c_stride = of_side,
            .e_stride = of_side};
  }

  /// X <- a X + (b A + c A^2) X in three products, X in scratch_.from before and after. Where
  /// symmetric products are computed by halves, a X comes in as a I beside b A + c A^2.
  /// of_matrix: null, or with halves what X still lacks, a factor for each matrix and then the
  /// squares of all: A takes the square, b A + c A^2 + a I the factor, and so the new X has both.
  void step(const PolarCoefficients& c, const float* of_matrix) {
    GemmCudaFactors of_polynomial{.product = static_cast<float>(c.c),
                                  .added = static_cast<float>(c.b)};
    if (halves_) {
      of_polynomial.diagonal = static_cast<float>(c.a);
      of_polynomial.of_matrix = of_matrix;
      gemm_sm90(exec_, gram(), gram_batch(),
                {.of_matrix = of_matrix == nullptr ? nullptr : of_matrix + count_});
      gemm_sm90(exec_, polynomial(), polynomial_batch(), of_polynomial);
    } else {
      gemm_cuda(exec_, gram(), gram_batch());
      gemm_cuda(exec_, polynomial(), polynomial_batch(), of_polynomial);
    }
    const bool tall = held_[0] > held_[1];
    const GemmInput left = side_matrix(scratch_.polynomial);
    const int64_t of_x = scratch_.stride, of_side = scratch_.side_stride;
    gemm_cuda(exec_,
              {.form = GemmForm::nn,
               .M = held_[0],
               .N = held_[1],
               .K = side_,
               .a = tall ? x() : left,
               .b = tall ? left : x(),
               .c = {scratch_.to, kType, scratch_.ld},
               .epilogue = halves_ ? GemmEpilogue::none : GemmEpilogue::add,
               .e = x()},
              {.count = count_,
               .a_stride = tall ? of_x : of_side,
               .b_stride = tall ? of_side : of_x,
               .c_stride = of_x,
               .e_stride = of_x},
              {.product = 1.0f, .added = halves_ ? 1.0f : static_cast<float>(c.a)});
    std::swap(scratch_.from, scratch_.to);
  }

  const Exec& exec_;
  const PolarExpress& a_;
  int64_t count_;
  Shape shape_, held_;  // of the operands and of the matrices in the stack
  int64_t side_;
  PolarStack scratch_;
  OperandRows<const float> u_{};
  OperandRows<float> x_{};
  bool packed_ = false;
  bool halves_ = false;   // symmetric products are computed by halves
  bool by_rows_ = false;  // rows have norm 1 before the first step
};

}  // namespace

void polar_express_cuda(const Exec& exec, const PolarExpress& args) {
  with_cuda_type(args.options.dtype, "polar_express", [&](auto* type) {
    Stack<std::remove_pointer_t<decltype(type)>>(exec, args).run();
  });
}

}  // namespace tightloop
