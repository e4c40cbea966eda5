#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tightloop/ops/sample/sample_kernels.h"

namespace tightloop {
namespace {

int32_t sample_row(const double* logits, double uniform, const SampleOptions& o, int64_t row) {
  // All tokens, most probable first.
  std::vector<int32_t> order(static_cast<size_t>(o.vocab));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t v = 0; v < o.vocab; ++v) {
    if (std::isnan(logits[v])) expect_finite_logit(logits[v], row);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const double largest = logits[order[0]];
  expect_finite_logit(largest, row);
  if (o.temperature == 0.0) return order[0];
  const auto weight = [&](int32_t v) { return std::exp((logits[v] - largest) / o.temperature); };

  if (o.top_k > 0 && o.top_k < o.vocab) order.resize(static_cast<size_t>(o.top_k));
  if (o.top_p < 1.0) {
    double total = 0.0, running = 0.0;
    for (int32_t v : order) total += weight(v);
    size_t kept = 0;
    while (kept < order.size() && (kept == 0 || running < o.top_p * total))
      running += weight(order[kept++]);
    order.resize(kept);
  }
  // The most probable token has weight 1.
  while (order.size() > 1 && weight(order.back()) < o.min_p) order.pop_back();

  std::sort(order.begin(), order.end());
  double total = 0.0, running = 0.0;
  for (int32_t v : order) total += weight(v);
  for (int32_t v : order) {
    running += weight(v);
    if (running > uniform * total) return v;
  }
  return order.back();
}

}  // namespace

void sample_ref(const Sample& a) {
  const int64_t cols = a.logits.shape().cols();
  for (int64_t r = 0; r < a.logits.shape().rows(); ++r)
    a.token.as<int32_t>()[r] =
        sample_row(a.logits.as<double>() + r * cols, a.uniform.as<double>()[r], a.options, r);
}

}  // namespace tightloop
