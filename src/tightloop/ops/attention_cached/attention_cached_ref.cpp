#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/ops/attention_cached/attention_cached_kernels.h"

namespace tightloop {

void attention_cached_ref(const AttentionCached& a, int64_t pos) {
  const Shape &q = a.q.shape(), &cache = a.k_cache.shape();
  const int64_t tokens = q[1], heads = q[2], dim = q[3], kv_heads = cache[1], size = cache[2];
  const auto cached = [&](const TensorView& t, int64_t b, int64_t g, int64_t j) {
    return t.as<double>() + ((b * kv_heads + g) * size + j) * dim;
  };
  std::vector<double> p(static_cast<size_t>(size));
  for (int64_t b = 0; b < q[0]; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t g = 0; g < kv_heads; ++g) {
        const int64_t row = ((b * tokens + t) * kv_heads + g) * dim;
        std::copy_n(a.k.as<double>() + row, dim, cached(a.k_cache, b, g, pos + t));
        std::copy_n(a.v.as<double>() + row, dim, cached(a.v_cache, b, g, pos + t));
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t i = pos + t, first = i > a.window ? i - a.window : 0;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t g = h / (heads / kv_heads), row = ((b * tokens + t) * heads + h) * dim;
        double largest = -HUGE_VAL, total = 0.0;
        for (int64_t j = first; j <= i; ++j) {
          double dot = 0.0;
          for (int64_t d = 0; d < dim; ++d)
            dot += a.q.as<double>()[row + d] * cached(a.k_cache, b, g, j)[d];
          p[static_cast<size_t>(j)] = a.softmax_scale * dot;
          largest = std::max(largest, a.softmax_scale * dot);
        }
        double* o = a.o.as<double>() + row;
        std::fill(o, o + dim, 0.0);
        for (int64_t j = first; j <= i; ++j) {
          const double weight = std::exp(p[static_cast<size_t>(j)] - largest);
          total += weight;
          for (int64_t d = 0; d < dim; ++d) o[d] += weight * cached(a.v_cache, b, g, j)[d];
        }
        for (int64_t d = 0; d < dim; ++d) o[d] /= total;
      }
    }
  }
}

}  // namespace tightloop
