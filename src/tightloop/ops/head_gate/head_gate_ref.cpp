#include <cmath>

#include "tightloop/ops/head_gate/head_gate_kernels.h"

namespace tightloop {

void head_gate_fwd_ref(const HeadGateFwd& a) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  for (int64_t n = 0; n < a.h.shape().rows(); ++n) {
    for (int64_t j = 0; j < heads; ++j) {
      double dot = 0.0;
      for (int64_t c = 0; c < m; ++c)
        dot += a.h.as<double>()[n * cols + c] * a.w.as<double>()[j * m + c];
      a.g.as<double>()[n * heads + j] = a.kappa / (1.0 + std::exp(-dot));
    }
  }
}

void head_gate_bwd_ref(const HeadGateBwd& a) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  for (int64_t n = 0; n < a.h.shape().rows(); ++n) {
    double* dh = a.dh.as<double>() + n * cols;
    for (int64_t c = 0; c < cols; ++c)
      dh[c] = a.dh_in.empty() ? 0.0 : a.dh_in.as<double>()[n * cols + c];
    for (int64_t j = 0; j < heads; ++j) {
      const double g = a.g.as<double>()[n * heads + j];
      const double ds = a.dg.as<double>()[n * heads + j] * g * (1.0 - g / a.kappa);
      for (int64_t c = 0; c < m; ++c) {
        dh[c] += ds * a.w.as<double>()[j * m + c];
        if (!a.dw.empty()) a.dw.as<double>()[j * m + c] += ds * a.h.as<double>()[n * cols + c];
      }
    }
  }
}

void gated_add_fwd_ref(const GatedAddFwd& a) {
  const int64_t width = a.v.shape().cols();
  for (int64_t i = 0; i < a.v.elems(); ++i) {
    a.y.as<double>()[i] = a.v.as<double>()[i] + a.g.as<double>()[i / width] * a.u.as<double>()[i];
  }
}

void gated_add_bwd_ref(const GatedAddBwd& a) {
  const int64_t width = a.dy.shape().cols();
  for (int64_t r = 0; r < a.dy.shape().rows(); ++r) {
    double dg = 0.0;
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      const double dy = a.dy.as<double>()[i];
      dg += dy * a.u.as<double>()[i];
      a.du.as<double>()[i] = a.g.as<double>()[r] * dy;
    }
    a.dg.as<double>()[r] = dg;
  }
}

}  // namespace tightloop
