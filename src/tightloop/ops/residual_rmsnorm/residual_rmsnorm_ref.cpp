#include <cmath>

#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm_kernels.h"

namespace tightloop {

void residual_rmsnorm_fwd_ref(const ResidualRmsnormFwd& q) {
  const int64_t cols = q.x.shape().cols();
  const double fa = factor_of<double>(q.ca, q.a, q.ia), fb = factor_of<double>(q.cb, q.b, q.ib);
  for (int64_t r = 0; r < q.x.shape().rows(); ++r) {
    double* h = q.h.as<double>() + r * cols;
    double squares = 0.0;
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double z = q.z.empty() ? 0.0 : q.z.as<double>()[i];
      const double s = q.x.as<double>()[i] + (q.y.empty() ? 0.0 : q.y.as<double>()[i]) +
                       (q.u.empty() ? 0.0 : q.u.as<double>()[i]);
      const double t = q.z.empty() ? s : fa * s + fb * z;
      if (!q.s.empty()) q.s.as<double>()[i] = s;
      if (!q.t.empty()) q.t.as<double>()[i] = t;
      h[c] = t;
      squares += t * t;
    }
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(cols) + q.eps);
    for (int64_t c = 0; c < cols; ++c) h[c] *= q.scale * rstd;
    q.rstd.as<double>()[r] = rstd;
  }
}

void residual_rmsnorm_bwd_ref(const ResidualRmsnormBwd& q) {
  const int64_t cols = q.dh.shape().cols();
  const double fa = factor_of<double>(q.ca, q.a, q.ia), fb = factor_of<double>(q.cb, q.b, q.ib);
  double sum_s = 0.0, sum_z = 0.0;
  for (int64_t r = 0; r < q.dh.shape().rows(); ++r) {
    const double *dh = q.dh.as<double>() + r * cols, *h = q.h.as<double>() + r * cols;
    const double rstd = q.rstd.as<double>()[r];
    double mean = 0.0;
    for (int64_t c = 0; c < cols; ++c) mean += dh[c] * h[c] / q.scale;
    mean /= static_cast<double>(cols);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c;
      const double dt = rstd * q.scale * (dh[c] - h[c] / q.scale * mean) +
                        (q.dt_in.empty() ? 0.0 : q.dt_in.as<double>()[i]);
      if (!q.da.empty()) sum_s += dt * q.s.as<double>()[i];
      if (!q.db.empty()) sum_z += dt * q.z.as<double>()[i];
      if (!q.dz.empty())
        q.dz.as<double>()[i] = fb * dt + (q.dz_in.empty() ? 0.0 : q.dz_in.as<double>()[i]);
      q.ds.as<double>()[i] = q.dz.empty() ? dt : fa * dt;
    }
  }
  if (!q.da.empty()) q.da.as<double>()[q.ia] += q.ca * sum_s;
  if (!q.db.empty()) q.db.as<double>()[q.ib] += q.cb * sum_z;
}

}  // namespace tightloop
