#include <algorithm>
#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/smear/smear_kernels.h"

namespace tightloop {
namespace {

TL_INLINE float sigmoid_of(const float* x, const float* w, int64_t m) {
  return sigmoid_approx(dot_row(x, w, m));
}

/// `before` is the row before x.
TL_CLONES void smear_row(const float* x,
                         const float* before,
                         const float* w,
                         float* y,
                         int64_t cols,
                         int64_t m,
                         float lambda) {
  const float gate = lambda * sigmoid_of(x, w, m);
  for (int64_t c = 0; c < cols; ++c) y[c] = x[c] + gate * before[c];
}

/// Rows [begin, end) of all B * T, `tokens` of them per sequence. sums: m of dw, then dlambda.
TL_CLONES void bwd_rows(const float* dy,
                        const float* x,
                        const float* w,
                        float* dx,
                        double* sums,
                        int64_t begin,
                        int64_t end,
                        int64_t tokens,
                        int64_t cols,
                        int64_t m,
                        float lambda) {
  dy += begin * cols, x += begin * cols, dx += begin * cols;
  for (int64_t r = begin; r < end; ++r, dy += cols, x += cols, dx += cols) {
    const int64_t t = r % tokens;
    if (t + 1 < tokens) {
      const float gate = lambda * sigmoid_of(x + cols, w, m);
      for (int64_t c = 0; c < cols; ++c) dx[c] = dy[c] + gate * dy[cols + c];
    } else {
      for (int64_t c = 0; c < cols; ++c) dx[c] = dy[c];
    }
    if (t == 0) continue;
    const float s = sigmoid_of(x, w, m);
    const float p = dot_row(dy, x - cols, cols);
    const float q = lambda * s * (1.0f - s) * p;
    for (int64_t c = 0; c < m; ++c) dx[c] += q * w[c];
    if (sums == nullptr) continue;
    for (int64_t c = 0; c < m; ++c) sums[c] += static_cast<double>(q * x[c]);
    sums[m] += static_cast<double>(s * p);
  }
}

}  // namespace

void smear_fwd_cpu(const SmearFwd& a, const float* prev) {
  const int64_t tokens = a.x.shape()[1], cols = a.x.shape()[2], m = a.w.elems();
  const float *x = a.x.as<float>(), *w = a.w.as<float>();
  const float lambda = *a.lambda.as<float>();
  float* y = a.y.as<float>();
  parallel_for(a.x.shape().rows(), grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x + r * cols;
      const bool first = r % tokens == 0;
      if (first && prev == nullptr) {
        std::memcpy(y + r * cols, row, static_cast<size_t>(cols) * sizeof(float));
        continue;
      }
      const float* before = first ? prev + r / tokens * cols : row - cols;
      smear_row(row, before, w, y + r * cols, cols, m, lambda);
    }
  });
}

void smear_bwd_cpu(const SmearBwd& a, double* scratch) {
  const int64_t tokens = a.x.shape()[1], cols = a.x.shape()[2], m = a.w.elems();
  const float *dy = a.dy.as<float>(), *x = a.x.as<float>(), *w = a.w.as<float>();
  const float lambda = *a.lambda.as<float>();
  float* dx = a.dx.as<float>();
  const bool wants_sums = !a.dw.empty() || !a.dlambda.empty();
  if (wants_sums) std::fill(scratch, scratch + kSmearBlocks * (m + 1), 0.0);
  parallel_parts(a.x.shape().rows(), kSmearBlocks, [&](int64_t begin, int64_t end, int part) {
    bwd_rows(dy, x, w, dx, wants_sums ? scratch + part * (m + 1) : nullptr, begin, end, tokens,
             cols, m, lambda);
  });
  if (!wants_sums) return;
  const auto total = [&](int64_t i) {
    double t = 0.0;
    for (int64_t part = 0; part < kSmearBlocks; ++part) t += scratch[part * (m + 1) + i];
    return static_cast<float>(t);
  };
  if (!a.dw.empty()) {
    for (int64_t c = 0; c < m; ++c) a.dw.as<float>()[c] += total(c);
  }
  if (!a.dlambda.empty()) *a.dlambda.as<float>() += total(m);
}

}  // namespace tightloop
