#include <algorithm>
#include <cmath>

#include "tightloop/ops/cross_entropy/cross_entropy_kernels.h"

namespace tightloop {

void cross_entropy_fwd_ref(const CrossEntropyFwd& a) {
  const int64_t cols = a.logits.shape().cols();
  for (int64_t n = 0; n < a.targets.elems(); ++n) {
    const double* x = a.logits.as<double>() + n * cols;
    const double top = *std::max_element(x, x + a.vocab);
    double total = 0.0;
    for (int64_t c = 0; c < a.vocab; ++c) total += std::exp(x[c] - top);
    const double lse = top + std::log(total);
    const double weight = a.weights.empty() ? 1.0 : a.weights.as<double>()[n];
    const int32_t target = a.targets.as<int32_t>()[n];
    a.lse.as<double>()[n] = lse;
    a.loss.as<double>()[n] = target == a.ignore_index ? 0.0 : weight * (lse - x[target]);
  }
}

void cross_entropy_bwd_ref(const CrossEntropyBwd& a) {
  const int64_t cols = a.logits.shape().cols();
  for (int64_t n = 0; n < a.targets.elems(); ++n) {
    const double* x = a.logits.as<double>() + n * cols;
    double* d = a.dlogits.as<double>() + n * cols;
    const double weight = a.weights.empty() ? 1.0 : a.weights.as<double>()[n];
    const int32_t target = a.targets.as<int32_t>()[n];
    if (target == a.ignore_index) {
      std::fill(d, d + cols, 0.0);
      continue;
    }
    const double g = a.dloss.as<double>()[n] * weight;
    const double lse = a.lse.as<double>()[n];
    for (int64_t c = 0; c < cols; ++c) {
      const double p = c < a.vocab ? std::exp(x[c] - lse) : 0.0;
      d[c] = g * (p - (c == target ? 1.0 : 0.0));
    }
  }
}

}  // namespace tightloop
