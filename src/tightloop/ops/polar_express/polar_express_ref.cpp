#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {
namespace {

using Matrix = std::vector<double>;

/// c (rows, cols) = a (rows, inner) times b (inner, cols).
Matrix product(const Matrix& a, const Matrix& b, int64_t rows, int64_t inner, int64_t cols) {
  Matrix c(static_cast<size_t>(rows * cols), 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < inner; ++k) {
      const double factor = a[static_cast<size_t>(i * inner + k)];
      for (int64_t j = 0; j < cols; ++j)
        c[static_cast<size_t>(i * cols + j)] += factor * b[static_cast<size_t>(k * cols + j)];
    }
  }
  return c;
}

Matrix transposed(const Matrix& a, int64_t rows, int64_t cols) {
  Matrix t(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j)
      t[static_cast<size_t>(j * rows + i)] = a[static_cast<size_t>(i * cols + j)];
  }
  return t;
}

double norm(const double* x, int64_t count) {
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) squares += x[i] * x[i];
  return std::sqrt(squares);
}

void scale(double* x, int64_t count, double factor) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

}  // namespace

void polar_express_ref(const PolarMatrix& a) {
  const int64_t m = a.u.shape()[0], n = a.u.shape()[1];
  Matrix x(a.u.as<double>(), a.u.as<double>() + m * n);
  if (a.options.row_equilibrate) {
    const double target = norm(x.data(), m * n) / std::sqrt(static_cast<double>(m));
    for (int64_t r = 0; r < m; ++r) {
      double* row = x.data() + r * n;
      scale(row, n, target / std::max(norm(row, n), 1e-6));
    }
  }
  scale(x.data(), m * n, 1.0 / (a.options.norm_factor * norm(x.data(), m * n) + 1e-6));

  const int64_t side = std::min(m, n);
  for (int64_t k = 0; k < a.options.steps; ++k) {
    const PolarCoefficients& c = kPolarSteps[static_cast<size_t>(k)];
    const Matrix t = transposed(x, m, n);
    const Matrix gram = m > n ? product(t, x, n, m, n) : product(x, t, m, n, m);
    Matrix polynomial = product(gram, gram, side, side, side);
    for (int64_t i = 0; i < side * side; ++i) {
      double& p = polynomial[static_cast<size_t>(i)];
      p = c.c * p + c.b * gram[static_cast<size_t>(i)];
      if (i / side == i % side) p += c.a;
    }
    x = m > n ? product(x, polynomial, m, n, n) : product(polynomial, x, m, m, n);
  }
  if (a.options.renormalize)
    scale(x.data(), m * n,
          std::sqrt(static_cast<double>(side)) / std::max(norm(x.data(), m * n), 1e-6));
  std::copy(x.begin(), x.end(), a.x.as<double>());
}

}  // namespace tightloop
