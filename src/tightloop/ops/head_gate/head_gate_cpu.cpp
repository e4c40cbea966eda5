#include <algorithm>
#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/head_gate/head_gate_kernels.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 256;  // rows: a gate reads few channels of each

/// Σ x[c]*y[c] for the few channels of a gate.
TL_INLINE float short_dot(const float* x, const float* y, int64_t m) {
  float lane[4] = {};
  int64_t c = 0;
  for (; c + 4 <= m; c += 4) {
    for (int64_t j = 0; j < 4; ++j) lane[j] += x[c + j] * y[c + j];
  }
  for (int64_t j = 0; c < m; ++c, ++j) lane[j] += x[c] * y[c];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

TL_CLONES void gate_rows(const float* h,
                         const float* w,
                         float* g,
                         int64_t rows,
                         int64_t cols,
                         int64_t heads,
                         int64_t m,
                         float kappa) {
  for (int64_t n = 0; n < rows; ++n, h += cols, g += heads) {
    for (int64_t j = 0; j < heads; ++j) g[j] = short_dot(h, w + j * m, m);
    for (int64_t j = 0; j < heads; ++j) g[j] = kappa * sigmoid_approx(g[j]);
  }
}

/// dh holds dh_in already.
TL_CLONES void gate_bwd_rows(const float* dg,
                             const float* g,
                             const float* h,
                             const float* w,
                             float* dh,
                             float* dw,
                             int64_t rows,
                             int64_t cols,
                             int64_t heads,
                             int64_t m,
                             float kappa) {
  for (int64_t n = 0; n < rows; ++n, h += cols, dh += cols, dg += heads, g += heads) {
    for (int64_t j = 0; j < heads; ++j) {
      const float ds = dg[j] * g[j] * (1.0f - g[j] / kappa);
      const float* wj = w + j * m;
      for (int64_t c = 0; c < m; ++c) dh[c] += ds * wj[c];
      if (dw == nullptr) continue;
      float* dwj = dw + j * m;
      for (int64_t c = 0; c < m; ++c) dwj[c] += ds * h[c];
    }
  }
}

TL_CLONES void add_rows(
    const float* v, const float* g, const float* u, float* y, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, v += width, u += width, y += width) {
    const float gate = g[r];
    TL_IVDEP
    for (int64_t i = 0; i < width; ++i) y[i] = v[i] + gate * u[i];
  }
}

TL_CLONES void add_bwd_rows(const float* dy,
                            const float* g,
                            const float* u,
                            float* dg,
                            float* du,
                            int64_t rows,
                            int64_t width) {
  for (int64_t r = 0; r < rows; ++r, dy += width, u += width, du += width) {
    const float gate = g[r];
    dg[r] = dot_row(dy, u, width);  // before du, which may be dy or u
    TL_IVDEP
    for (int64_t i = 0; i < width; ++i) du[i] = gate * dy[i];
  }
}

}  // namespace

void head_gate_fwd_cpu(const HeadGateFwd& a) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  const float *h = a.h.as<float>(), *w = a.w.as<float>();
  float* g = a.g.as<float>();
  parallel_for(a.h.shape().rows(), kGrain, [&](int64_t begin, int64_t end) {
    gate_rows(h + begin * cols, w, g + begin * heads, end - begin, cols, heads, m,
              static_cast<float>(a.kappa));
  });
}

void head_gate_bwd_cpu(const HeadGateBwd& a, float* scratch) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  const int64_t rows = a.h.shape().rows(), weights = heads * m;
  const float *dg = a.dg.as<float>(), *g = a.g.as<float>(), *h = a.h.as<float>();
  const float* w = a.w.as<float>();
  const float* dh_in = a.dh_in.empty() ? nullptr : a.dh_in.as<float>();
  float* dh = a.dh.as<float>();
  const bool wants_weight = !a.dw.empty();
  if (wants_weight) std::fill(scratch, scratch + kHeadGateBlocks * weights, 0.0f);
  parallel_parts(rows, kHeadGateBlocks, [&](int64_t begin, int64_t end, int part) {
    const auto bytes = static_cast<size_t>((end - begin) * cols) * sizeof(float);
    if (dh_in == nullptr) {
      std::memset(dh + begin * cols, 0, bytes);
    } else if (dh_in != dh) {
      std::memcpy(dh + begin * cols, dh_in + begin * cols, bytes);
    }
    gate_bwd_rows(dg + begin * heads, g + begin * heads, h + begin * cols, w, dh + begin * cols,
                  wants_weight ? scratch + part * weights : nullptr, end - begin, cols, heads, m,
                  static_cast<float>(a.kappa));
  });
  if (!wants_weight) return;
  float* dw = a.dw.as<float>();
  for (int64_t part = 0; part < kHeadGateBlocks; ++part) {
    for (int64_t i = 0; i < weights; ++i) dw[i] += scratch[part * weights + i];
  }
}

void gated_add_fwd_cpu(const GatedAddFwd& a) {
  const int64_t width = a.v.shape().cols();
  const float *v = a.v.as<float>(), *g = a.g.as<float>(), *u = a.u.as<float>();
  float* y = a.y.as<float>();
  parallel_for(a.v.shape().rows(), grain_rows(width), [&](int64_t begin, int64_t end) {
    add_rows(v + begin * width, g + begin, u + begin * width, y + begin * width, end - begin,
             width);
  });
}

void gated_add_bwd_cpu(const GatedAddBwd& a) {
  const int64_t width = a.dy.shape().cols();
  const float *dy = a.dy.as<float>(), *g = a.g.as<float>(), *u = a.u.as<float>();
  float *dg = a.dg.as<float>(), *du = a.du.as<float>();
  parallel_for(a.dy.shape().rows(), grain_rows(width), [&](int64_t begin, int64_t end) {
    add_bwd_rows(dy + begin * width, g + begin, u + begin * width, dg + begin, du + begin * width,
                 end - begin, width);
  });
}

}  // namespace tightloop
