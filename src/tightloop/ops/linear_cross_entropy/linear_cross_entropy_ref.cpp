#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"

namespace tightloop {
namespace {

/// The valid logits of one row, capped.
void logits_of(const double* x, const double* w, int64_t cols, double cap, std::vector<double>& y) {
  for (size_t v = 0; v < y.size(); ++v) {
    double dot = 0.0;
    for (int64_t c = 0; c < cols; ++c) dot += x[c] * w[static_cast<int64_t>(v) * cols + c];
    y[v] = cap == 0.0 ? dot : cap * std::tanh(dot / cap);
  }
}

double lse_of(const std::vector<double>& y) {
  const double top = *std::max_element(y.begin(), y.end());
  double total = 0.0;
  for (const double v : y) total += std::exp(v - top);
  return top + std::log(total);
}

}  // namespace

void linear_cross_entropy_fwd_ref(const LinearCrossEntropyFwd& a) {
  const int64_t cols = a.x.shape().cols();
  std::vector<double> y(static_cast<size_t>(a.vocab));
  for (int64_t n = 0; n < a.targets.elems(); ++n) {
    logits_of(a.x.as<double>() + n * cols, a.w.as<double>(), cols, a.cap, y);
    const double lse = lse_of(y);
    const double weight = a.weights.empty() ? 1.0 : a.weights.as<double>()[n];
    const int32_t target = a.targets.as<int32_t>()[n];
    a.lse.as<double>()[n] = lse;
    a.loss.as<double>()[n] =
        target == a.ignore_index ? 0.0 : weight * (lse - y[static_cast<size_t>(target)]);
  }
}

void linear_cross_entropy_grad_ref(const LinearCrossEntropyGrad& a) {
  linear_cross_entropy_fwd_ref({.x = a.x,
                                .w = a.w,
                                .targets = a.targets,
                                .weights = a.weights,
                                .loss = a.loss,
                                .lse = a.lse,
                                .vocab = a.vocab,
                                .ignore_index = a.ignore_index,
                                .cap = a.cap,
                                .chunk_rows = a.chunk_rows});
  const int64_t cols = a.x.shape().cols();
  const double* w = a.w.as<double>();
  double* dw = a.dw.empty() ? nullptr : a.dw.as<double>();
  if (dw != nullptr && !a.accumulate) std::fill(dw, dw + a.dw.elems(), 0.0);
  std::vector<double> y(static_cast<size_t>(a.vocab)), dx(static_cast<size_t>(cols));
  for (int64_t n = 0; n < a.targets.elems(); ++n) {
    const double* x = a.x.as<double>() + n * cols;
    const int32_t target = a.targets.as<int32_t>()[n];
    const double weight = a.weights.empty() ? 1.0 : a.weights.as<double>()[n];
    const double g = target == a.ignore_index ? 0.0 : a.dloss.as<double>()[n] * weight;
    const double lse = a.lse.as<double>()[n];
    logits_of(x, w, cols, a.cap, y);
    std::fill(dx.begin(), dx.end(), 0.0);
    for (int64_t v = 0; v < a.vocab; ++v) {
      const double logit = y[static_cast<size_t>(v)];
      double d = g * (std::exp(logit - lse) - (v == target ? 1.0 : 0.0));
      if (a.cap != 0.0) d *= 1.0 - (logit / a.cap) * (logit / a.cap);
      for (int64_t c = 0; c < cols; ++c) {
        dx[static_cast<size_t>(c)] += d * w[v * cols + c];
        if (dw != nullptr) dw[v * cols + c] += d * x[c];
      }
    }
    std::copy(dx.begin(), dx.end(), a.dx.as<double>() + n * cols);
  }
}

}  // namespace tightloop
