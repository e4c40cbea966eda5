#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention_cached/attention_cached_kernels.h"
#include "tightloop/ops/common/attention_pack.h"
#include "tightloop/ops/common/attention_tiles.h"
#include "tightloop/ops/common/row.h"

namespace tightloop {
namespace {

using attention_detail::kBlock;
using attention_detail::Kernels;
using attention_detail::kRowPad;
using attention_detail::kScoreLd;
using attention_detail::pack_panels;
using attention_detail::pack_rows;
using attention_detail::Pieces;
using attention_detail::round_up;

constexpr double kLog2e = 1.4426950408889634;
constexpr int64_t kTileTokens = 8;  // from this many tokens on, packing the keys pays
constexpr int64_t kChunk = 256;     // positions of one partial result: fixed, so bits repeat

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
    TL_IVDEP
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
  TL_IVDEP
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
void write_caches(const AttentionCached& a, int64_t pos) {
  const int64_t tokens = a.k.shape()[1], kv_heads = a.k.shape()[2], dim = a.k.shape()[3];
  const int64_t size = a.k_cache.shape()[2];
  const float *k = a.k.as<float>(), *v = a.v.as<float>();
  T *k_cache = a.k_cache.as<T>(), *v_cache = a.v_cache.as<T>();
  parallel_for(a.k.shape()[0] * kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t from = ((unit / kv_heads * tokens + t) * kv_heads + unit % kv_heads) * dim;
        const int64_t to = (unit * size + pos + t) * dim;
        write_row(k + from, k_cache + to, dim);
        write_row(v + from, v_cache + to, dim);
      }
    }
  });
}

/// Few tokens: one partial result (o, largest, total) per query row and chunk of keys, then merged.
template <typename T>
void run_rows(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  const Shape &shape = a.q.shape(), &cache = a.k_cache.shape();
  const int64_t batch = shape[0], tokens = shape[1], heads = shape[2], dim = shape[3];
  const int64_t kv_heads = cache[1], size = cache[2], group = heads / kv_heads;
  const float* q = a.q.as<float>();
  const T *k_cache = a.k_cache.as<T>(), *v_cache = a.v_cache.as<T>();

  const int64_t first = std::max<int64_t>(0, pos - a.window) / kChunk;
  const int64_t chunks = chunks_of(pos + tokens) - first, partial_size = dim + 2;
  float* partials = reinterpret_cast<float*>(scratch.data());
  const float scale_log2 = static_cast<float>(a.softmax_scale * kLog2e);
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

/// Memory of one thread that runs tiles: the keys that a call can see, packed, and work space.
struct TileWork {
  int64_t keys, ld;
  float *k_panels, *v, *q, *sums, *scores, *largest, *total;

  TileWork(const Kernels& tiles, const Shape& q_shape, const Shape& cache, int64_t window)
      : keys(round_up(std::min(cache[2], std::min(window, cache[2]) + q_shape[1]), kBlock) +
             kBlock),
        ld(round_up(q_shape[3], tiles.nr) + kRowPad) {}
  int64_t floats(int64_t dim) const { return keys * (dim + ld) + kBlock * (2 * ld + kScoreLd + 2); }
  void place(float* memory, int64_t dim) {
    Pieces pieces{memory};
    k_panels = pieces.take(keys * dim);
    v = pieces.take(keys * ld);
    q = pieces.take(kBlock * ld);
    sums = pieces.take(kBlock * ld);
    scores = pieces.take(kBlock * kScoreLd);
    largest = pieces.take(kBlock);
    total = pieces.take(kBlock);
  }
};

/// Many tokens: the tiles of attention, over keys packed from the cache.
template <typename T>
void run_tiles(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  const Kernels& tiles = attention_detail::native_kernels();
  const Shape &shape = a.q.shape(), &cache = a.k_cache.shape();
  const int64_t tokens = shape[1], heads = shape[2], dim = shape[3];
  const int64_t kv_heads = cache[1], size = cache[2], group = heads / kv_heads;
  const T *k_cache = a.k_cache.as<T>(), *v_cache = a.v_cache.as<T>();
  const int64_t window = std::min(a.window, size);
  // Positions count from the first block that any query sees.
  const int64_t base = std::max<int64_t>(0, pos - window) / kBlock * kBlock;
  const int64_t keys = pos + tokens - base;
  const int64_t units = shape[0] * kv_heads;
  parallel_parts(units, units, [&](int64_t unit, int64_t, int) {
    TileWork work(tiles, shape, cache, window);
    work.place(reinterpret_cast<float*>(scratch.data()) + thread_index() * work.floats(dim), dim);
    const int64_t from = (unit * size + base) * dim, padded = round_up(keys, kBlock);
    pack_panels(k_cache + from, dim, keys, padded, dim, tiles.nr, work.k_panels);
    pack_rows(v_cache + from, dim, keys, padded, dim, work.ld, work.v);
    for (int64_t first = 0; first < tokens; first += kBlock) {
      const int64_t rows = std::min(kBlock, tokens - first);
      for (int64_t member = 0; member < group; ++member) {
        const int64_t h = unit % kv_heads * group + member;
        const int64_t row = ((unit / kv_heads * tokens + first) * heads + h) * dim;
        pack_rows(a.q.as<float>() + row, heads * dim, rows, round_up(rows, tiles.mr), dim, work.ld,
                  work.q);
        tiles.fwd({.q = work.q,
                   .k_panels = work.k_panels,
                   .v = work.v,
                   .sums = work.sums,
                   .scores = work.scores,
                   .largest = work.largest,
                   .total = work.total,
                   .o = a.o.as<float>() + row,
                   .o_stride = heads * dim,
                   .lse = nullptr,
                   .first_query = pos + first - base,
                   .queries = rows,
                   .dim = dim,
                   .ld = work.ld,
                   .window = window,
                   .scale_log2 = static_cast<float>(a.softmax_scale * kLog2e)});
      }
    }
  });
}

template <typename T>
void run(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  write_caches<T>(a, pos);
  a.q.shape()[1] < kTileTokens ? run_rows<T>(a, pos, scratch) : run_tiles<T>(a, pos, scratch);
}

}  // namespace

int64_t attention_cached_scratch_bytes(const Shape& q, const Shape& cache, int64_t window) {
  if (q[1] >= kTileTokens) {
    const TileWork work(attention_detail::native_kernels(), q, cache, window);
    return thread_count() * work.floats(q[3]) * int64_t{sizeof(float)};
  }
  const int64_t size = cache[2], reach = std::min(window, size) + q[1];
  const int64_t chunks = std::min(chunks_of(size), chunks_of(reach) + 1);
  return q[0] * q[1] * q[2] * chunks * (q[3] + 2) * int64_t{sizeof(float)};
}

void attention_cached_cpu(const AttentionCached& a, int64_t pos, std::span<std::byte> scratch) {
  a.k_cache.dtype() == DType::bf16 ? run<bf16>(a, pos, scratch) : run<float>(a, pos, scratch);
}

}  // namespace tightloop
