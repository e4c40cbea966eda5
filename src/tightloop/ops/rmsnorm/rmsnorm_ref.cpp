#include <cmath>

#include "tightloop/ops/rmsnorm/rmsnorm_kernels.h"

namespace tightloop {

void rmsnorm_fwd_ref(const RmsnormFwd& a) {
  const int64_t cols = a.x.shape().cols(), rows = a.x.shape().rows();
  const double* weight = a.weight.empty() ? nullptr : a.weight.as<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const double* x = a.x.as<double>() + r * cols;
    double squares = 0.0;
    for (int64_t c = 0; c < cols; ++c) squares += x[c] * x[c];
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(cols) + a.eps);
    double* y = a.y.as<double>() + r * cols;
    for (int64_t c = 0; c < cols; ++c)
      y[c] = a.scale * x[c] * rstd * (weight != nullptr ? weight[c] : 1.0);
    a.rstd.as<double>()[r] = rstd;
  }
}

void rmsnorm_bwd_ref(const RmsnormBwd& a) {
  const int64_t cols = a.dy.shape().cols(), rows = a.dy.shape().rows();
  const double* weight = a.weight.empty() ? nullptr : a.weight.as<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const double* dy = a.dy.as<double>() + r * cols;
    const double* saved = a.saved.as<double>() + r * cols;
    const double rstd = a.rstd.as<double>()[r];
    const auto xhat = [&](int64_t c) {
      return weight != nullptr ? saved[c] * rstd : saved[c] / a.scale;
    };
    const auto g = [&](int64_t c) {
      return a.scale * dy[c] * (weight != nullptr ? weight[c] : 1.0);
    };
    double mean = 0.0;
    for (int64_t c = 0; c < cols; ++c) mean += g(c) * xhat(c);
    mean /= static_cast<double>(cols);
    if (!a.dweight.empty()) {
      for (int64_t c = 0; c < cols; ++c) a.dweight.as<double>()[c] += a.scale * dy[c] * xhat(c);
    }
    double* dx = a.dx.as<double>() + r * cols;
    for (int64_t c = 0; c < cols; ++c) dx[c] = rstd * (g(c) - xhat(c) * mean);
  }
}

}  // namespace tightloop
