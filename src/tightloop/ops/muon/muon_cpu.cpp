#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/denormals.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain{16384};
constexpr int64_t kColumns{256};  // columns whose sums of squares a thread keeps at once

TL_CLONES void momentum_range(
    const float* g, float* momentum, float* u, int64_t count, float mu, float rest) {
  for (int64_t i = 0; i < count; ++i) {
    const float part = rest * g[i], next = mu * momentum[i] + part;
    momentum[i] = next;
    u[i] = part + mu * next;
  }
}

TL_CLONES void row_squares(const float* x, double* squares, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) squares[r] = dot_row_f64(x + r * cols, x + r * cols, cols);
}

/// Sums of squares of up to kColumns neighbouring columns; `x` points at the first row's first.
TL_CLONES void column_squares(
    const float* x, double* squares, int64_t rows, int64_t stride, int64_t count) {
  double sums[kColumns] = {};
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    for (int64_t c = 0; c < count; ++c) sums[c] += static_cast<double>(x[c] * x[c]);
  }
  for (int64_t c = 0; c < count; ++c) squares[c] = sums[c];
}

/// p -= step + decay * p where step * p >= 0, with step = x * factor. The product of two tiny
/// numbers may flush to zero, so signs are compared instead of the product.
TL_INLINE float updated(float p, float step, float decay) {
  const bool decays = (step >= 0.0f && p >= 0.0f) || (step <= 0.0f && p <= 0.0f);
  return p - (step + (decays ? decay * p : 0.0f));
}

/// One factor a row.
TL_CLONES void update_rows(
    const float* x, float* p, const float* row_factor, int64_t rows, int64_t cols, float decay) {
  for (int64_t r = 0; r < rows; ++r, x += cols, p += cols) {
    const float factor = row_factor[r];
    for (int64_t c = 0; c < cols; ++c) p[c] = updated(p[c], x[c] * factor, decay);
  }
}

/// One factor a column.
TL_CLONES void update_columns(
    const float* x, float* p, const float* column_factor, int64_t rows, int64_t cols, float decay) {
  for (int64_t r = 0; r < rows; ++r, x += cols, p += cols) {
    for (int64_t c = 0; c < cols; ++c) p[c] = updated(p[c], x[c] * column_factor[c], decay);
  }
}

}  // namespace

void muon_momentum_cpu(const MuonMomentumMatrix& a) {
  const auto mu = static_cast<double>(a.hyper.as<float>()[1]);
  const float* g = a.g.as<float>();
  float *momentum = a.momentum.as<float>(), *u = a.u.as<float>();
  parallel_for(a.u.elems(), kGrain, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    momentum_range(g + begin, momentum + begin, u + begin, end - begin, static_cast<float>(mu),
                   static_cast<float>(1.0 - mu));
  });
}

int64_t muon_update_scratch(const Shape& parameter) {
  return std::max(parameter[0], parameter[1]) * int64_t{sizeof(double) + sizeof(float)};
}

void muon_update_cpu(const MuonUpdateMatrix& a, std::byte* scratch) {
  const int64_t m = a.p.shape()[0], n = a.p.shape()[1];
  const bool along_rows = m >= n;
  const int64_t groups = along_rows ? m : n, reduced = along_rows ? n : m;
  auto* squares = reinterpret_cast<double*>(scratch);
  auto* factor = reinterpret_cast<float*>(squares + groups);
  const float* hyper = a.hyper.as<float>();
  const float* x = a.x.as<float>();
  float *p = a.p.as<float>(), *second = a.second_moment.as<float>();

  if (along_rows) {
    parallel_for(m, grain_rows(n), [&](int64_t begin, int64_t end) {
      row_squares(x + begin * n, squares + begin, end - begin, n);
    });
  } else {
    parallel_for((n + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * kColumns; c < std::min(n, end * kColumns); c += kColumns)
        column_squares(x + c, squares + c, m, n, std::min(kColumns, n - c));
    });
  }

  const double rest = 1.0 - static_cast<double>(hyper[2]);
  double before = 0.0, after = 0.0;
  for (int64_t j = 0; j < groups; ++j) {
    const double variance = squares[j] / static_cast<double>(reduced);
    const auto old = static_cast<double>(second[j]);
    second[j] = static_cast<float>(old + rest * (variance - old));
    const double weight = 1.0 / std::sqrt(std::max(static_cast<double>(second[j]), 1e-10));
    before += squares[j];
    after += squares[j] * weight * weight;
    squares[j] = weight;
  }
  const double keep = std::sqrt(before) / std::max(std::sqrt(after), 1e-10);
  const double rate = static_cast<double>(hyper[0]) *
                      std::sqrt(std::max(1.0, static_cast<double>(m) / static_cast<double>(n)));
  for (int64_t j = 0; j < groups; ++j) factor[j] = static_cast<float>(rate * keep * squares[j]);

  const auto decay = static_cast<float>(rate * static_cast<double>(hyper[3]));
  parallel_for(m, grain_rows(n), [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    if (along_rows)
      update_rows(x + begin * n, p + begin * n, factor + begin, end - begin, n, decay);
    else
      update_columns(x + begin * n, p + begin * n, factor, end - begin, n, decay);
  });
}

}  // namespace tightloop
