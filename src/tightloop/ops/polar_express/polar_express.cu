#include <algorithm>
#include <cmath>
#include <utility>

#include "tightloop/ops/common/cuda_rows.cuh"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 1024;  // of the one block that finds the factors of all rows

/// Sum over all rows of fn(row), in every thread of the block.
template <typename Fn>
__device__ double sum_of_rows(int64_t rows, Fn&& fn) {
  double sum = 0.0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += fn(r);
  return block_sum_f64<kThreads>(sum);
}

/// Row factors that equilibrate, then scale below norm 1: both from one pass over the matrix.
__global__ void __launch_bounds__(kThreads) initial_factors(
    const double* squares, float* row_factor, int64_t rows, bool equilibrate, double norm_factor) {
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const double target = sqrt(total / static_cast<double>(rows));
  const auto factor_of = [=](int64_t r) {
    return equilibrate ? target / std::max(sqrt(squares[r]), 1e-6) : 1.0;
  };
  const double scaled =
      sum_of_rows(rows, [=](int64_t r) { return factor_of(r) * factor_of(r) * squares[r]; });
  const double factor = 1.0 / (norm_factor * sqrt(scaled) + 1e-6);
  for (int64_t r = threadIdx.x; r < rows; r += kThreads)
    row_factor[r] = static_cast<float>(factor_of(r) * factor);
}

/// The factor that gives the matrix the norm of an orthogonal one, for every row.
__global__ void __launch_bounds__(kThreads)
    final_factors(const double* squares, float* row_factor, int64_t rows, double norm) {
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const auto factor = static_cast<float>(norm / std::max(sqrt(total), 1e-6));
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) row_factor[r] = factor;
}

/// y = x * row_factor; y may be x.
template <int N>
__global__ void __launch_bounds__(kRowThreads)
    scale_rows(const float* x, float* y, const float* row_factor, int64_t rows, int64_t cols) {
  for_row_piece<N>(rows, cols, [=](int64_t row, int64_t col) {
    auto pack = *reinterpret_cast<const Pack<float, N>*>(x + row * cols + col);
    const float factor = row_factor[row];
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] *= factor;
    *reinterpret_cast<Pack<float, N>*>(y + row * cols + col) = pack;
  });
}

/// square <- a I + b gram + c square.
template <int N>
__global__ void __launch_bounds__(kRowThreads)
    polynomial(const float* gram, float* square, int64_t side, float a, float b, float c) {
  for_row_piece<N>(side, side, [=](int64_t row, int64_t col) {
    const auto g = *reinterpret_cast<const Pack<float, N>*>(gram + row * side + col);
    auto s = *reinterpret_cast<const Pack<float, N>*>(square + row * side + col);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      s.at[j] = c * s.at[j] + b * g.at[j];
      if (col + j == row) s.at[j] += a;
    }
    *reinterpret_cast<Pack<float, N>*>(square + row * side + col) = s;
  });
}

void scale_rows_cuda(
    const Exec& exec, const float* x, float* y, const Shape& shape, const float* row_factor) {
  const int64_t rows = shape[0], cols = shape[1];
  const bool packed = cols % kRowPack == 0 && aligned_for_packs(x, y);
  const auto kernel = packed ? scale_rows<kRowPack> : scale_rows<1>;
  kernel<<<row_piece_blocks(rows, cols), kRowThreads, 0, cuda_stream(exec)>>>(x, y, row_factor,
                                                                              rows, cols);
}

void polynomial_cuda(const Exec& exec,
                     const PolarWorkspace& w,
                     int64_t side,
                     const PolarCoefficients& c) {
  const bool packed = side % kRowPack == 0 && aligned_for_packs(w.gram, w.square);
  const auto kernel = packed ? polynomial<kRowPack> : polynomial<1>;
  kernel<<<row_piece_blocks(side, side), kRowThreads, 0, cuda_stream(exec)>>>(
      w.gram, w.square, side, static_cast<float>(c.a), static_cast<float>(c.b),
      static_cast<float>(c.c));
}

}  // namespace

void polar_express_cuda(const Exec& exec, const PolarExpress& a) {
  const Shape& shape = a.u.shape();
  const int64_t rows = shape[0], cols = shape[1], side = std::min(rows, cols);
  const bool tall = rows > cols;
  const PolarWorkspace w(shape, exec.scratch);
  PolarProducts products(shape);

  row_squares_cuda(exec, a.u.as<float>(), rows, cols, w.row_squares);
  initial_factors<<<1, kThreads, 0, cuda_stream(exec)>>>(
      w.row_squares, w.row_factor, rows, a.options.row_equilibrate, a.options.norm_factor);
  // The steps go back and forth between two buffers and end in the output.
  float* from = a.options.steps % 2 == 0 ? a.x.as<float>() : w.other;
  float* to = a.options.steps % 2 == 0 ? w.other : a.x.as<float>();
  scale_rows_cuda(exec, a.u.as<float>(), from, shape, w.row_factor);
  for (int64_t k = 0; k < a.options.steps; ++k, std::swap(from, to)) {
    products.gram.a.data = products.gram.b.data = from;
    products.gram.c.data = w.gram;
    gemm_cuda(exec, products.gram);
    products.square.a.data = products.square.b.data = w.gram;
    products.square.c.data = w.square;
    gemm_cuda(exec, products.square);
    polynomial_cuda(exec, w, side, kPolarSteps[static_cast<size_t>(k)]);
    products.apply.a.data = tall ? from : w.square;
    products.apply.b.data = tall ? w.square : from;
    products.apply.c.data = to;
    gemm_cuda(exec, products.apply);
  }
  if (a.options.renormalize) {
    row_squares_cuda(exec, a.x.as<float>(), rows, cols, w.row_squares);
    final_factors<<<1, kThreads, 0, cuda_stream(exec)>>>(w.row_squares, w.row_factor, rows,
                                                         std::sqrt(static_cast<double>(side)));
    scale_rows_cuda(exec, a.x.as<float>(), a.x.as<float>(), shape, w.row_factor);
  }
  cuda::check_launch("polar_express");
}

}  // namespace tightloop
