#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {
namespace {

TL_CLONES void row_squares(const float* x, double* squares, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) squares[r] = dot_row_f64(x + r * cols, x + r * cols, cols);
}

TL_CLONES void scale_rows(
    const float* x, float* y, const float* factor, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r, x += cols, y += cols) {
    for (int64_t c = 0; c < cols; ++c) y[c] = x[c] * factor[r];
  }
}

/// square <- a I + b gram + c square, rows [begin, end) of a matrix of `side` columns.
TL_CLONES void polynomial_rows(const float* gram,
                               float* square,
                               int64_t begin,
                               int64_t end,
                               int64_t side,
                               float a,
                               float b,
                               float c) {
  for (int64_t r = begin; r < end; ++r) {
    const float* g = gram + r * side;
    float* s = square + r * side;
    for (int64_t j = 0; j < side; ++j) s[j] = c * s[j] + b * g[j];
    s[r] += a;
  }
}

void find_row_squares(const float* x, const Shape& shape, double* squares) {
  const int64_t cols = shape[1];
  parallel_for(shape[0], grain_rows(cols), [&](int64_t begin, int64_t end) {
    row_squares(x + begin * cols, squares + begin, end - begin, cols);
  });
}

void scale_all_rows(const float* x, float* y, const Shape& shape, const float* factor) {
  const int64_t cols = shape[1];
  parallel_for(shape[0], grain_rows(cols), [&](int64_t begin, int64_t end) {
    scale_rows(x + begin * cols, y + begin * cols, factor + begin, end - begin, cols);
  });
}

/// Row factors that equilibrate, then scale below norm 1: both from one pass over the matrix.
void initial_factors(const PolarMatrix& a, const PolarWorkspace& w) {
  const int64_t rows = a.u.shape()[0];
  find_row_squares(a.u.as<float>(), a.u.shape(), w.row_squares);
  double total = 0.0;
  for (int64_t r = 0; r < rows; ++r) total += w.row_squares[r];
  const double target = std::sqrt(total / static_cast<double>(rows));
  const auto row_factor = [&](int64_t r) {
    return a.options.row_equilibrate ? target / std::max(std::sqrt(w.row_squares[r]), 1e-6) : 1.0;
  };
  double scaled = 0.0;
  for (int64_t r = 0; r < rows; ++r) scaled += row_factor(r) * row_factor(r) * w.row_squares[r];
  const double factor = 1.0 / (a.options.norm_factor * std::sqrt(scaled) + 1e-6);
  for (int64_t r = 0; r < rows; ++r) w.row_factor[r] = static_cast<float>(row_factor(r) * factor);
}

void renormalize(float* x, const Shape& shape, const PolarWorkspace& w) {
  find_row_squares(x, shape, w.row_squares);
  double total = 0.0;
  for (int64_t r = 0; r < shape[0]; ++r) total += w.row_squares[r];
  const auto side = static_cast<double>(std::min(shape[0], shape[1]));
  const double factor = std::sqrt(side) / std::max(std::sqrt(total), 1e-6);
  std::fill(w.row_factor, w.row_factor + shape[0], static_cast<float>(factor));
  scale_all_rows(x, x, shape, w.row_factor);
}

}  // namespace

int64_t polar_express_scratch(const Shape& shape) {
  const PolarProducts p(shape);
  return PolarWorkspace::bytes(shape) +
         static_cast<int64_t>(std::max({gemm_scratch_bytes(p.gram), gemm_scratch_bytes(p.square),
                                        gemm_scratch_bytes(p.apply)}));
}

void polar_express_cpu(const PolarMatrix& a, std::span<std::byte> scratch) {
  const Shape& shape = a.u.shape();
  const int64_t side = std::min(shape[0], shape[1]);
  const bool tall = shape[0] > shape[1];
  const PolarWorkspace w(shape, scratch);
  PolarProducts products(shape);

  initial_factors(a, w);
  // The steps go back and forth between two buffers and end in the output.
  float* from = a.options.steps % 2 == 0 ? a.x.as<float>() : w.other;
  float* to = a.options.steps % 2 == 0 ? w.other : a.x.as<float>();
  scale_all_rows(a.u.as<float>(), from, shape, w.row_factor);
  for (int64_t k = 0; k < a.options.steps; ++k, std::swap(from, to)) {
    const PolarCoefficients& c = kPolarSteps[static_cast<size_t>(k)];
    products.gram.a.data = products.gram.b.data = from;
    products.gram.c.data = w.gram;
    gemm(products.gram, w.rest);
    products.square.a.data = products.square.b.data = w.gram;
    products.square.c.data = w.square;
    gemm(products.square, w.rest);
    parallel_for(side, grain_rows(side), [&](int64_t begin, int64_t end) {
      polynomial_rows(w.gram, w.square, begin, end, side, static_cast<float>(c.a),
                      static_cast<float>(c.b), static_cast<float>(c.c));
    });
    products.apply.a.data = tall ? from : w.square;
    products.apply.b.data = tall ? w.square : from;
    products.apply.c.data = to;
    gemm(products.apply, w.rest);
  }
  if (a.options.renormalize) renormalize(a.x.as<float>(), shape, w);
}

}  // namespace tightloop
