#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention/attention_kernels.h"
#include "tightloop/ops/common/row.h"

namespace tightloop {
namespace {

struct Strides {
  int64_t tokens, heads, kv_heads, dim;
  int64_t q_row(int64_t b, int64_t i, int64_t h) const {
    return ((b * tokens + i) * heads + h) * dim;
  }
  int64_t k_row(int64_t b, int64_t j, int64_t g) const {
    return ((b * tokens + j) * kv_heads + g) * dim;
  }
};

Strides strides_of(const Shape& q, const Shape& k) {
  return {q[1], q[2], k[2], q[3]};
}

/// p[j] = scale * q·k[j] for `count` keys `stride` apart.
TL_CLONES void scores(const float* q,
                      const float* k,
                      int64_t stride,
                      int64_t count,
                      int64_t dim,
                      float scale,
                      float* p) {
  for (int64_t j = 0; j < count; ++j) p[j] = scale * dot_row(q, k + j * stride, dim);
}

TL_CLONES float exp_row(float* p, int64_t count, float shift) {
  double total = 0.0;
  for (int64_t j = 0; j < count; ++j) p[j] = exp_approx(p[j] - shift);
  for (int64_t j = 0; j < count; ++j) total += static_cast<double>(p[j]);
  return static_cast<float>(total);
}

TL_CLONES float max_of(const float* p, int64_t count) {
  return max_row(p, count);
}
TL_CLONES float dot_of(const float* x, const float* y, int64_t n) {
  return dot_row(x, y, n);
}

/// y += a * x
TL_CLONES void add_scaled(float* y, const float* x, float a, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

}  // namespace

int64_t attention_fwd_scratch_bytes(const Shape& q, const Shape&) {
  return int64_t{thread_count()} * q[1] * int64_t{sizeof(float)};
}
int64_t attention_bwd_scratch_bytes(const Shape& q, const Shape&) {
  return 2 * int64_t{thread_count()} * q[1] * int64_t{sizeof(float)};
}

void attention_fwd_cpu(const AttentionFwd& a, std::span<std::byte> scratch) {
  const Strides s = strides_of(a.q.shape(), a.k.shape());
  const float *q = a.q.as<float>(), *k = a.k.as<float>(), *v = a.v.as<float>();
  float *o = a.o.as<float>(), *lse = a.lse.as<float>();
  const int64_t group = s.heads / s.kv_heads, kv_stride = s.kv_heads * s.dim;
  parallel_for(a.q.shape()[0] * s.heads, 1, [&](int64_t begin, int64_t end) {
    float* p = reinterpret_cast<float*>(scratch.data()) + thread_index() * s.tokens;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / s.heads, h = unit % s.heads;
      for (int64_t i = 0; i < s.tokens; ++i) {
        const int64_t first = i > a.window ? i - a.window : 0, count = i - first + 1;
        const int64_t row = s.q_row(b, i, h), key = s.k_row(b, first, h / group);
        scores(q + row, k + key, kv_stride, count, s.dim, static_cast<float>(a.softmax_scale), p);
        const float largest = max_of(p, count);
        const float total = exp_row(p, count, largest);
        lse[unit * s.tokens + i] = largest + std::log(total);
        std::fill(o + row, o + row + s.dim, 0.0f);
        for (int64_t j = 0; j < count; ++j)
          add_scaled(o + row, v + key + j * kv_stride, p[j] / total, s.dim);
      }
    }
  });
}

void attention_bwd_cpu(const AttentionBwd& a, std::span<std::byte> scratch) {
  const Strides s = strides_of(a.q.shape(), a.k.shape());
  const float *q = a.q.as<float>(), *k = a.k.as<float>(), *v = a.v.as<float>();
  const float *grad_o = a.grad_o.as<float>(), *o = a.o.as<float>(), *lse = a.lse.as<float>();
  float *dq = a.dq.as<float>(), *dk = a.dk.as<float>(), *dv = a.dv.as<float>();
  const int64_t group = s.heads / s.kv_heads, kv_stride = s.kv_heads * s.dim;
  const float scale = static_cast<float>(a.softmax_scale);
  parallel_for(a.q.shape()[0] * s.kv_heads, 1, [&](int64_t begin, int64_t end) {
    float* p = reinterpret_cast<float*>(scratch.data()) + 2 * thread_index() * s.tokens;
    float* dp = p + s.tokens;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / s.kv_heads, g = unit % s.kv_heads;
      for (int64_t j = 0; j < s.tokens; ++j) {
        std::fill_n(dk + s.k_row(b, j, g), s.dim, 0.0f);
        std::fill_n(dv + s.k_row(b, j, g), s.dim, 0.0f);
      }
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        for (int64_t i = 0; i < s.tokens; ++i) {
          const int64_t first = i > a.window ? i - a.window : 0, count = i - first + 1;
          const int64_t row = s.q_row(b, i, h), key = s.k_row(b, first, g);
          scores(q + row, k + key, kv_stride, count, s.dim, scale, p);
          exp_row(p, count, lse[(b * s.heads + h) * s.tokens + i]);
          scores(grad_o + row, v + key, kv_stride, count, s.dim, 1.0f, dp);
          const float delta = dot_of(grad_o + row, o + row, s.dim);
          std::fill_n(dq + row, s.dim, 0.0f);
          for (int64_t j = 0; j < count; ++j) {
            const float ds = scale * p[j] * (dp[j] - delta);
            add_scaled(dq + row, k + key + j * kv_stride, ds, s.dim);
            add_scaled(dk + key + j * kv_stride, q + row, ds, s.dim);
            add_scaled(dv + key + j * kv_stride, grad_o + row, p[j], s.dim);
          }
        }
      }
    }
  });
}

}  // namespace tightloop
