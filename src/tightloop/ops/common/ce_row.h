#pragma once

#include <cmath>
#include <cstdint>

#include "tightloop/ops/common/row.h"

/// Cross-entropy of one row of logits: shared by cross_entropy and linear_cross_entropy, which
/// therefore give the same bits for the same logits.
namespace tightloop {

/// log(sum over c of exp(x[c])), 32 running sums around the largest logit. NaN when a logit is.
TL_INLINE float lse_row(const float* x, int64_t cols) {
  const float top = max_row(x, cols);
  float lane[32] = {};
  int64_t c = 0;
  for (; c + 32 <= cols; c += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += exp_nonpositive(x[c + j] - top);
  }
  for (int64_t j = 0; c < cols; ++c, ++j) lane[j] += exp_nonpositive(x[c] - top);
  return top + std::log(sum_lanes(lane));
}

/// d[c] = g * (softmax(x)[c] - [c = target]) for c < vocab, 0 up to cols. d may be x.
TL_INLINE void ce_grad_row(
    const float* x, float* d, int64_t vocab, int64_t cols, int64_t target, float lse, float g) {
  TL_IVDEP
  for (int64_t c = 0; c < vocab; ++c) d[c] = g * exp_nonpositive(x[c] - lse);
  d[target] -= g;
  for (int64_t c = vocab; c < cols; ++c) d[c] = 0.0f;
}

}  // namespace tightloop
