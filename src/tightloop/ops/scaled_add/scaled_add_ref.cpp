#include "tightloop/ops/scaled_add/scaled_add_kernels.h"

namespace tightloop {
void scaled_add_fwd_ref(const ScaledAddFwd& s) {
  const double fa = factor_of<double>(s.ca, s.a, s.ia), fb = factor_of<double>(s.cb, s.b, s.ib);
  const double *x = s.x.as<double>(), *z = s.z.as<double>();
  for (int64_t i = 0; i < s.x.elems(); ++i) s.y.as<double>()[i] = fa * x[i] + fb * z[i];
}

void scaled_add_bwd_ref(const ScaledAddBwd& s) {
  const double fa = factor_of<double>(s.ca, s.a, s.ia), fb = factor_of<double>(s.cb, s.b, s.ib);
  double sum_x = 0.0, sum_z = 0.0;
  for (int64_t i = 0; i < s.dy.elems(); ++i) {
    const double dy = s.dy.as<double>()[i];
    if (!s.da.empty()) sum_x += dy * s.x.as<double>()[i];
    if (!s.db.empty()) sum_z += dy * s.z.as<double>()[i];
    s.dx.as<double>()[i] = fa * dy;
    s.dz.as<double>()[i] = fb * dy;
  }
  if (!s.da.empty()) s.da.as<double>()[s.ia] += s.ca * sum_x;
  if (!s.db.empty()) s.db.as<double>()[s.ib] += s.cb * sum_z;
}

}  // namespace tightloop
