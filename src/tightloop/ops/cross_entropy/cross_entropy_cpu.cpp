#include <algorithm>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/ce_row.h"
#include "tightloop/ops/cross_entropy/cross_entropy_kernels.h"

namespace tightloop {
namespace {

TL_CLONES float lse_of(const float* x, int64_t cols) {
  return lse_row(x, cols);
}

TL_CLONES void grad_of(
    const float* x, float* d, int64_t vocab, int64_t cols, int64_t target, float lse, float g) {
  ce_grad_row(x, d, vocab, cols, target, lse, g);
}

}  // namespace

void cross_entropy_fwd_cpu(const CrossEntropyFwd& a) {
  const int64_t cols = a.logits.shape().cols();
  const float* logits = a.logits.as<float>();
  const int32_t* targets = a.targets.as<int32_t>();
  const float* weights = a.weights.empty() ? nullptr : a.weights.as<float>();
  float *loss = a.loss.as<float>(), *lse = a.lse.as<float>();
  parallel_for(a.targets.elems(), grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* x = logits + n * cols;
      lse[n] = lse_of(x, a.vocab);
      const float weight = weights == nullptr ? 1.0f : weights[n];
      loss[n] = targets[n] == a.ignore_index ? 0.0f : weight * (lse[n] - x[targets[n]]);
    }
  });
}

void cross_entropy_bwd_cpu(const CrossEntropyBwd& a) {
  const int64_t cols = a.logits.shape().cols();
  const float *logits = a.logits.as<float>(), *dloss = a.dloss.as<float>();
  const int32_t* targets = a.targets.as<int32_t>();
  const float* weights = a.weights.empty() ? nullptr : a.weights.as<float>();
  const float* lse = a.lse.as<float>();
  float* dlogits = a.dlogits.as<float>();
  parallel_for(a.targets.elems(), grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* d = dlogits + n * cols;
      const float g = dloss[n] * (weights == nullptr ? 1.0f : weights[n]);
      if (targets[n] == a.ignore_index) {
        std::fill(d, d + cols, 0.0f);
      } else {
        grad_of(logits + n * cols, d, a.vocab, cols, targets[n], lse[n], g);
      }
    }
  });
}

}  // namespace tightloop
