#include "tightloop/ops/op_template/op_template_kernels.h"

namespace tightloop {

void op_template_fwd_ref(const OpTemplateFwd& a) {
  const double* x = a.x.as<double>();
  double* y = a.y.as<double>();
  for (int64_t i = 0; i < a.x.elems(); ++i) y[i] = a.scale * x[i] * x[i];
}

void op_template_bwd_ref(const OpTemplateBwd& a) {
  const double *dy = a.dy.as<double>(), *x = a.x.as<double>();
  double* dx = a.dx.as<double>();
  for (int64_t i = 0; i < a.x.elems(); ++i) dx[i] = 2.0 * a.scale * x[i] * dy[i];
}

}  // namespace tightloop
