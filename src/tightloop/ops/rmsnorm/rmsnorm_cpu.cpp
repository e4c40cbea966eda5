#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/rmsnorm/rmsnorm_kernels.h"

namespace tightloop {
namespace {

TL_CLONES void fwd_rows(const float* x,
                        const float* weight,
                        float* y,
                        float* rstd,
                        int64_t rows,
                        int64_t cols,
                        float eps,
                        float scale) {
  for (int64_t r = 0; r < rows; ++r, x += cols, y += cols) {
    const float mean = dot_row(x, x, cols) / static_cast<float>(cols);
    rstd[r] = 1.0f / std::sqrt(mean + eps);
    const float factor = rstd[r] * scale;
    if (weight == nullptr) {
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) y[c] = x[c] * factor;
    } else {
      TL_IVDEP
      for (int64_t c = 0; c < cols; ++c) y[c] = x[c] * factor * weight[c];
    }
  }
}

TL_CLONES void bwd_rows(const float* dy,
                        const float* y,
                        const float* rstd,
                        float* dx,
                        int64_t rows,
                        int64_t cols,
                        float scale) {
  for (int64_t r = 0; r < rows; ++r, dy += cols, y += cols, dx += cols) {
    // xhat = y / scale and g = scale * dy, so mean(g * xhat) = mean(dy * y).
    const float mean = dot_row(dy, y, cols) / static_cast<float>(cols);
    const float a = rstd[r] * scale, b = rstd[r] * mean / scale;
    TL_IVDEP
    for (int64_t c = 0; c < cols; ++c) dx[c] = a * dy[c] - b * y[c];
  }
}

TL_CLONES void bwd_rows_weighted(const float* dy,
                                 const float* x,
                                 const float* rstd,
                                 const float* weight,
                                 float* dx,
                                 float* dweight,
                                 int64_t rows,
                                 int64_t cols,
                                 float scale) {
  for (int64_t r = 0; r < rows; ++r, dy += cols, x += cols, dx += cols) {
    float mean = 0.0f;
    for (int64_t c = 0; c < cols; ++c) mean += dy[c] * weight[c] * x[c];
    mean *= scale * rstd[r] / static_cast<float>(cols);
    const float a = rstd[r] * scale, b = rstd[r] * rstd[r] * mean;
    for (int64_t c = 0; c < cols; ++c) {
      if (dweight != nullptr) dweight[c] += a * dy[c] * x[c];
      dx[c] = a * dy[c] * weight[c] - b * x[c];
    }
  }
}

}  // namespace

void rmsnorm_fwd_cpu(const RmsnormFwd& a) {
  const int64_t cols = a.x.shape().cols(), rows = a.x.shape().rows();
  const float* x = a.x.as<float>();
  const float* weight = a.weight.empty() ? nullptr : a.weight.as<float>();
  float *y = a.y.as<float>(), *rstd = a.rstd.as<float>();
  parallel_for(rows, grain_rows(cols), [&](int64_t begin, int64_t end) {
    fwd_rows(x + begin * cols, weight, y + begin * cols, rstd + begin, end - begin, cols,
             static_cast<float>(a.eps), static_cast<float>(a.scale));
  });
}

void rmsnorm_bwd_cpu(const RmsnormBwd& a, float* scratch) {
  const int64_t cols = a.dy.shape().cols(), rows = a.dy.shape().rows();
  const float *dy = a.dy.as<float>(), *saved = a.saved.as<float>(), *rstd = a.rstd.as<float>();
  float* dx = a.dx.as<float>();
  const float scale = static_cast<float>(a.scale);
  if (a.weight.empty()) {
    parallel_for(rows, grain_rows(cols), [&](int64_t begin, int64_t end) {
      bwd_rows(dy + begin * cols, saved + begin * cols, rstd + begin, dx + begin * cols,
               end - begin, cols, scale);
    });
    return;
  }
  const float* weight = a.weight.as<float>();
  const bool wants_weight = !a.dweight.empty();
  if (wants_weight) std::fill(scratch, scratch + kRmsnormBlocks * cols, 0.0f);
  parallel_parts(rows, kRmsnormBlocks, [&](int64_t begin, int64_t end, int part) {
    bwd_rows_weighted(dy + begin * cols, saved + begin * cols, rstd + begin, weight,
                      dx + begin * cols, wants_weight ? scratch + part * cols : nullptr,
                      end - begin, cols, scale);
  });
  if (!wants_weight) return;
  float* dweight = a.dweight.as<float>();
  for (int64_t part = 0; part < std::min(rows, kRmsnormBlocks); ++part) {
    for (int64_t c = 0; c < cols; ++c) dweight[c] += scratch[part * cols + c];
  }
}

}  // namespace tightloop
