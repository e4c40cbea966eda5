#include <cmath>

#include "tightloop/ops/smear/smear_kernels.h"

namespace tightloop {
namespace {

double sigmoid_of(const double* x, const double* w, int64_t m) {
  double dot = 0.0;
  for (int64_t c = 0; c < m; ++c) dot += w[c] * x[c];
  return 1.0 / (1.0 + std::exp(-dot));
}

}  // namespace

void smear_fwd_ref(const SmearFwd& a, const double* prev) {
  const int64_t batch = a.x.shape()[0], tokens = a.x.shape()[1], cols = a.x.shape()[2];
  const double lambda = *a.lambda.as<double>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double* x = a.x.as<double>() + (b * tokens + t) * cols;
      double* y = a.y.as<double>() + (b * tokens + t) * cols;
      const double* before = t > 0 ? x - cols : (prev == nullptr ? nullptr : prev + b * cols);
      const double gate = lambda * sigmoid_of(x, a.w.as<double>(), a.w.elems());
      for (int64_t c = 0; c < cols; ++c) y[c] = x[c] + (before == nullptr ? 0.0 : gate * before[c]);
    }
  }
}

void smear_bwd_ref(const SmearBwd& a) {
  const int64_t batch = a.x.shape()[0], tokens = a.x.shape()[1], cols = a.x.shape()[2];
  const int64_t m = a.w.elems();
  const double lambda = *a.lambda.as<double>();
  const double* w = a.w.as<double>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = (b * tokens + t) * cols;
      const double *x = a.x.as<double>() + at, *dy = a.dy.as<double>() + at;
      double* dx = a.dx.as<double>() + at;
      for (int64_t c = 0; c < cols; ++c) dx[c] = dy[c];
      if (t + 1 < tokens) {
        const double gate = lambda * sigmoid_of(x + cols, w, m);
        for (int64_t c = 0; c < cols; ++c) dx[c] += gate * dy[cols + c];
      }
      if (t == 0) continue;
      const double s = sigmoid_of(x, w, m);
      double p = 0.0;
      for (int64_t c = 0; c < cols; ++c) p += dy[c] * x[c - cols];
      const double q = lambda * s * (1.0 - s) * p;
      for (int64_t c = 0; c < m; ++c) {
        dx[c] += q * w[c];
        if (!a.dw.empty()) a.dw.as<double>()[c] += q * x[c];
      }
      if (!a.dlambda.empty()) *a.dlambda.as<double>() += s * p;
    }
  }
}

}  // namespace tightloop
