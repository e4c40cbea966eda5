#include <cmath>

#include "tightloop/ops/adamw/adamw_kernels.h"

namespace tightloop {

void adamw_ref(const Adamw& a) {
  const double* hyper = a.hyper.as<double>();
  const double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
  const double decay = hyper[4], bias1 = hyper[5], bias2 = hyper[6];
  const double* g = a.g.as<double>();
  double *p = a.p.as<double>(), *m = a.m.as<double>(), *v = a.v.as<double>();
  for (int64_t i = 0; i < a.p.elems(); ++i) {
    p[i] *= 1.0 - lr * decay;
    m[i] += (1.0 - beta1) * (g[i] - m[i]);
    v[i] += (1.0 - beta2) * (g[i] * g[i] - v[i]);
    p[i] -= lr / bias1 * m[i] / (std::sqrt(v[i] / bias2) + eps);
  }
}

}  // namespace tightloop
