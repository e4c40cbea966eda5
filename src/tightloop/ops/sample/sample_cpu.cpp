#include <algorithm>
#include <cmath>
#include <numeric>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/sample/sample_kernels.h"

namespace tightloop {
namespace {

TL_CLONES float largest_of(const float* x, int64_t n) {
  return max_row(x, n);
}

/// How many elements are NaN.
TL_CLONES float nans_of(const float* x, int64_t n) {
  float lane[32] = {};
  int64_t c = 0;
  for (; c + 32 <= n; c += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += x[c + j] == x[c + j] ? 0.0f : 1.0f;
  }
  for (int64_t j = 0; c < n; ++c, ++j) lane[j] += x[c] == x[c] ? 0.0f : 1.0f;
  return sum_lanes(lane);
}

int32_t sample_row(const float* logits,
                   double uniform,
                   const SampleOptions& o,
                   int64_t row,
                   double* weight,
                   int32_t* order) {
  if (nans_of(logits, o.vocab) != 0.0f) expect_finite_logit(std::nan(""), row);
  const float largest = largest_of(logits, o.vocab);
  expect_finite_logit(static_cast<double>(largest), row);
  if (o.temperature == 0.0)
    return static_cast<int32_t>(std::find(logits, logits + o.vocab, largest) - logits);

  const auto before = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  int32_t* end = order + o.vocab;
  std::iota(order, end, 0);
  if (o.top_k > 0 && o.top_k < o.vocab) {
    std::nth_element(order, order + o.top_k - 1, end, before);
    end = order + o.top_k;
  }
  double total = 0.0;
  for (const int32_t* v = order; v != end; ++v) {
    weight[*v] = std::exp(static_cast<double>(logits[*v] - largest) / o.temperature);
    total += weight[*v];
  }
  if (o.top_p < 1.0) {
    // A heap yields the most probable tokens one by one; they gather behind `rest`.
    const auto after = [&](int32_t a, int32_t b) { return before(b, a); };
    std::make_heap(order, end, after);
    int32_t* rest = end;
    for (double running = 0.0; rest != order && running < o.top_p * total;) {
      std::pop_heap(order, rest--, after);
      running += weight[*rest];
    }
    order = rest;
  }
  if (o.min_p > 0.0)  // the most probable token has weight 1
    end = std::remove_if(order, end, [&](int32_t v) { return weight[v] < o.min_p; });
  if (end - order < o.vocab) std::sort(order, end);

  total = 0.0;
  for (const int32_t* v = order; v != end; ++v) total += weight[*v];
  double running = 0.0;
  for (const int32_t* v = order; v != end; ++v) {
    running += weight[*v];
    if (running > uniform * total) return *v;
  }
  return *(end - 1);
}

}  // namespace

void sample_cpu(const Sample& a, std::span<std::byte> scratch) {
  const int64_t cols = a.logits.shape().cols(), vocab = a.options.vocab;
  const float *logits = a.logits.as<float>(), *uniform = a.uniform.as<float>();
  int32_t* token = a.token.as<int32_t>();
  double* weights = reinterpret_cast<double*>(scratch.data());
  int32_t* orders = reinterpret_cast<int32_t*>(weights + thread_count() * vocab);
  parallel_for(a.logits.shape().rows(), 1, [&](int64_t begin, int64_t end) {
    const int64_t slice = thread_index() * vocab;
    for (int64_t r = begin; r < end; ++r)
      token[r] = sample_row(logits + r * cols, static_cast<double>(uniform[r]), a.options, r,
                            weights + slice, orders + slice);
  });
}

}  // namespace tightloop
