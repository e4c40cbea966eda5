#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {

void muon_momentum_ref(const MuonMomentumMatrix& a) {
  const double mu = a.hyper.as<double>()[1];
  const double* g = a.g.as<double>();
  double *momentum = a.momentum.as<double>(), *u = a.u.as<double>();
  for (int64_t i = 0; i < a.u.elems(); ++i) {
    const double gradient = g[i];
    momentum[i] = mu * momentum[i] + (1.0 - mu) * gradient;
    u[i] = (1.0 - mu) * gradient + mu * momentum[i];
  }
}

void muon_update_ref(const MuonUpdateMatrix& a) {
  const int64_t m = a.p.shape()[0], n = a.p.shape()[1];
  const bool along_rows = m >= n;
  const int64_t groups = along_rows ? m : n, reduced = along_rows ? n : m;
  const double* hyper = a.hyper.as<double>();
  const double lr = hyper[0], beta2 = hyper[2], decay = hyper[3];
  const double* x = a.x.as<double>();
  double *p = a.p.as<double>(), *second = a.second_moment.as<double>();

  std::vector<double> variance(static_cast<size_t>(groups), 0.0), weight(variance);
  for (int64_t i = 0; i < m * n; ++i)
    variance[static_cast<size_t>(along_rows ? i / n : i % n)] += x[i] * x[i];
  double before = 0.0, after = 0.0;
  for (int64_t j = 0; j < groups; ++j) {
    const auto k = static_cast<size_t>(j);
    variance[k] /= static_cast<double>(reduced);
    second[j] += (1.0 - beta2) * (variance[k] - second[j]);
    weight[k] = 1.0 / std::sqrt(std::max(second[j], 1e-10));
    before += variance[k] * static_cast<double>(reduced);
    after += variance[k] * static_cast<double>(reduced) * weight[k] * weight[k];
  }
  const double keep = std::sqrt(before) / std::max(std::sqrt(after), 1e-10);
  const double rate =
      lr * std::sqrt(std::max(1.0, static_cast<double>(m) / static_cast<double>(n)));
  for (int64_t i = 0; i < m * n; ++i) {
    const double step = x[i] * weight[static_cast<size_t>(along_rows ? i / n : i % n)] * keep;
    const double decayed = step * p[i] >= 0.0 ? rate * decay * p[i] : 0.0;
    p[i] -= rate * step + decayed;
  }
}

}  // namespace tightloop
