#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention_cached/attention_cached_kernels.h"
#include "tightloop/ops/common/row.h"

namespace tightloop {
namespace {

constexpr int64_t kChunk = 256;  // positions of one partial result: fixed, so bits repeat

TL_INLINE float value_of(float x) {
  return x;
}
TL_INLINE float value_of(bf16 x) {
  return to_float(x);
}

/// q·k with 32 running sums.
template <typename T>
TL_INLINE float dot_key(const float* q, const T* k, int64_t dim) {
  float lane[32] = {};
  int64_t d = 0;
  for (; d + 32 <= dim; d += 32) {
    for (int64_t j = 0; j < 32; ++j) lane[j] += q[d + j] * value_of(k[d + j]);
  }
  for (int64_t j = 0; d < dim; ++d, ++j) lane[j] += q[d] * value_of(k[d]);
  return sum_lanes(lane);
}

/// One query over `count` keys: o = Σ 2^(s - largest) v, not yet divided by the sum of the weights.
template <typename T>
TL_INLINE void attend(const float* q,
                      const T* k,
                      const T* v,
                      int64_t count,
                      int64_t dim,
                      float scale_log2,
                      float* o,
                      float* largest,
                      float* total) {
  float s[kChunk] = {};
  for (int64_t j = 0; j < count; ++j) s[j] = scale_log2 * dot_key(q, k + j * dim, dim);
  *largest = max_row(s, count);
  const float shift = *largest;
  for (int64_t j = 0; j < count; ++j) s[j] = exp2_approx(s[j] - shift);
  float lane[32] = {};
  int64_t j = 0;
  for (; j + 32 <= count; j += 32) {
    for (int64_t i = 0; i < 32; ++i) lane[i] += s[j + i];
  }
  for (int64_t i = 0; j < count; ++j, ++i) lane[i] += s[j];
  *total = sum_lanes(lane);
  for (int64_t d = 0; d < dim; ++d) o[d] = 0.0f;
  for (j = 0; j < count; ++j) {
    const float weight = s[j];
#pragma GCC ivdep
    for (int64_t d = 0; d < dim; ++d) o[d] += weight * value_of(v[j * dim + d]);
  }
}

TL_CLONES void attend_chunk(const float* q,
                            const float* k,
                            const float* v,
                            int64_t count,
                            int64_t dim,
                            float scale_log2,
                            float* o,
                            float* largest,
                            float* total) {
  attend(q, k, v, count, dim, scale_log2, o, largest, total);
}
TL_CLONES void attend_chunk(const float* q,
                            const bf16* k,
                            const bf16* v,
                            int64_t count,
                            int64_t dim,
                            float scale_log2,
                            float* o,
                            float* largest,
                            float* total) {
  attend(q, k, v, count, dim, scale_log2, o, largest, total);
}

/// o += a * x
TL_CLONES void add_scaled(float* o, const float* x, float a, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) o[i] += a * x[i];
}

void write_row(const float* x, float* cache, int64_t n) {
  std::copy_n(x, n, cache);
}
void write_row(const float* x, bf16* cache, int64_t n) {
  for (int64_t i = 0; i < n; ++i) cache[i] = to_bf16(x[i]);
}

int64_t chunks_of(int64_t positions) {
  return (positions + kChunk - 1) / kChunk;
}

/// T: the element type of the caches.
template <typename T>
void run(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  const Shape &shape = a.q.shape(), &cache = a.k_cache.shape();
  const int64_t batch = shape[0], tokens = shape[1], heads = shape[2], dim = shape[3];
  const int64_t kv_heads = cache[1], size = cache[2], group = heads / kv_heads;
  const float *q = a.q.as<float>(), *k = a.k.as<float>(), *v = a.v.as<float>();
  T *k_cache = a.k_cache.as<T>(), *v_cache = a.v_cache.as<T>();

  parallel_for(batch * kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t from = ((unit / kv_heads * tokens + t) * kv_heads + unit % kv_heads) * dim;
        const int64_t to = (unit * size + pos + t) * dim;
        write_row(k + from, k_cache + to, dim);
        write_row(v + from, v_cache + to, dim);
      }
    }
  });

  // One partial result (o, largest, total) per query row and chunk of keys.
  const int64_t first = std::max<int64_t>(0, pos - a.window) / kChunk;
  const int64_t chunks = chunks_of(pos + tokens) - first, partial_size = dim + 2;
  float* partials = reinterpret_cast<float*>(scratch.data());
  const float scale_log2 = static_cast<float>(a.softmax_scale * 1.4426950408889634);
  parallel_parts(batch * kv_heads * chunks, batch * kv_heads * chunks,
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t unit = task / chunks, chunk = task % chunks;
                     const int64_t b = unit / kv_heads, g = unit % kv_heads;
                     for (int64_t t = 0; t < tokens; ++t) {
                       const int64_t i = pos + t, start = (first + chunk) * kChunk;
                       const int64_t from = std::max(start, i - a.window);
                       const int64_t to = std::min(start + kChunk, i + 1);
                       for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                         const int64_t row = (b * tokens + t) * heads + h;
                         float* partial = partials + (row * chunks + chunk) * partial_size;
                         if (from >= to) {
                           partial[dim + 1] = 0.0f;
                           continue;
                         }
                         const int64_t key = (unit * size + from) * dim;
                         attend_chunk(q + row * dim, k_cache + key, v_cache + key, to - from, dim,
                                      scale_log2, partial, partial + dim, partial + dim + 1);
                       }
                     }
                   }
                 });

  float* o = a.o.as<float>();
  parallel_for(batch * tokens * heads, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* partial = partials + row * chunks * partial_size;
      float largest = -HUGE_VALF, total = 0.0f;
      for (int64_t c = 0; c < chunks; ++c) {
        const float* p = partial + c * partial_size + dim;
        if (p[1] != 0.0f) largest = std::max(largest, p[0]);
      }
      for (int64_t c = 0; c < chunks; ++c) {
        const float* p = partial + c * partial_size + dim;
        if (p[1] != 0.0f) total += p[1] * exp2_approx(p[0] - largest);
      }
      std::fill_n(o + row * dim, dim, 0.0f);
      for (int64_t c = 0; c < chunks; ++c) {
        const float* p = partial + c * partial_size;
        if (p[dim + 1] != 0.0f)
          add_scaled(o + row * dim, p, exp2_approx(p[dim] - largest) / total, dim);
      }
    }
  });
}

}  // namespace

int64_t attention_cached_scratch_bytes(const Shape& q, const Shape& cache, int64_t window) {
  const int64_t size = cache[2], reach = std::min(window, size) + q[1];
  const int64_t chunks = std::min(chunks_of(size), chunks_of(reach) + 1);
  return q[0] * q[1] * q[2] * chunks * (q[3] + 2) * int64_t{sizeof(float)};
}

void attention_cached_cpu(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  a.k_cache.dtype() == DType::bf16 ? run<bf16>(a, pos, scratch) : run<float>(a, pos, scratch);
}

}  // namespace tightloop
