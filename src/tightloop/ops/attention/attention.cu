#include <algorithm>

#include "tightloop/ops/attention/attention_cudnn.h"
#include "tightloop/ops/attention/attention_kernels.h"
#include "tightloop/ops/attention/attention_sm90.h"
#include "tightloop/ops/common/cuda_lanes.cuh"
#include "tightloop/ops/common/cuda_mma.cuh"

// A block holds a tile of rows (queries in fwd and dq, keys in dkdv), 16 to a warp, and walks over
// the tiles of the other side that they see, two of which are in shared memory: one in use, one on
// its way. Nothing is summed across blocks, so every bit is the same on every run; the price is
// that the backward computes scores and do v twice: 7 products instead of 5.
//
// A warp's 16 x 8n scores lie in its registers as the tensor core leaves them (cuda_mma.cuh), which
// is also how the next product wants its left side. bf16 uses the tensor cores; f32 does the same
// sums in the same places with FMAs.
namespace tightloop {
namespace {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct Problem {
  int tokens, heads, kv_heads, dim, window;
  float scale, scale_log2;
  bool packs;  // heads can be read 16 bytes at a time

  __device__ bool sees(int query, int key) const { return key <= query && query - key <= window; }
};

/// One head of a tensor (B, T, heads, dim): the row of token t starts at data + t * stride.
template <typename T>
struct Head {
  T* data;
  int64_t stride;
  __device__ Head(T* base, const Problem& p, int heads, int64_t batch, int head)
      : data(base + (batch * p.tokens * heads + head) * p.dim),
        stride(static_cast<int64_t>(heads) * p.dim) {}
};

/// Tiles for heads of up to Dim elements: no block needs more than 99 KiB of shared memory, which
/// every device of sm_80 and later has.
template <typename T, int Dim>
struct Sizes {
  static constexpr int kBytes = Dim * static_cast<int>(sizeof(T));  // of a row
  static constexpr int kLd = Dim + kElementsOf16Bytes<T>;  // 16 bytes against bank conflicts
  static constexpr int kRows = kBytes <= 512 ? 64 : 32;
  static constexpr int kThreads = kRows / 16 * kWarp;
  static constexpr int kFwdCols = kBytes <= 256 ? 64 : (kBytes <= 512 ? 32 : 16);
  static constexpr int kBwdCols = kBytes <= 256 ? 32 : (kBytes <= 512 ? 16 : 8);
  static constexpr int kFwdShared = (kRows + 4 * kFwdCols) * kLd * static_cast<int>(sizeof(T));
  static constexpr int kBwdShared = (2 * kRows + 4 * kBwdCols) * kLd * static_cast<int>(sizeof(T));
  static_assert(kFwdShared <= 99 * 1024 && kBwdShared <= 99 * 1024);
  /// Columns of dk and dv that a block makes: both accumulators must fit in registers.
  static constexpr int kKeyCols = Dim < 128 ? Dim : 128;
};

/// Tokens first .. first + Rows - 1 of a head into shared memory, zeros beyond its tokens and
/// elements. The caller commits and waits.
template <int Rows, int Dim, typename T>
__device__ void load_tile(T* tile, const Head<const T>& head, int first, const Problem& p) {
  using S = Sizes<T, Dim>;
  if (p.packs) {
    constexpr int kPacks = Dim / kElementsOf16Bytes<T>;
    for (int i = static_cast<int>(threadIdx.x); i < Rows * kPacks; i += S::kThreads) {
      const int row = i / kPacks, col = i % kPacks * kElementsOf16Bytes<T>;
      const bool present = first + row < p.tokens && col < p.dim;
      copy_16(tile + row * S::kLd + col,
              present ? head.data + (first + row) * head.stride + col : head.data, present);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < Rows * Dim; i += S::kThreads) {
    const int row = i / Dim, col = i % Dim;
    const bool present = first + row < p.tokens && col < p.dim;
    T x;
    store_float(&x, 0.0f);
    tile[row * S::kLd + col] = present ? head.data[(first + row) * head.stride + col] : x;
  }
}

/// acc = A Bᵀ for 16 rows at a and 8 * Tiles rows at b.
template <int Dim, int Tiles>
__device__ void product(float (&acc)[Tiles][4], const bf16* a, const bf16* b) {
  constexpr int kLd = Sizes<bf16, Dim>::kLd;
  static_assert(Tiles % 2 == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  a += lane % 16 * kLd + lane / 16 * 8;
  b += (lane % 8 + lane / 16 * 8) * kLd + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < Dim; k += 16) {
    unsigned fa[4];
    load_matrices(fa, a + k);
#pragma unroll
    for (int n = 0; n < Tiles; n += 2) {
      unsigned fb[4];
      load_matrices(fb, b + n * 8 * kLd + k);
      mma_bf16(acc[n], fa, fb[0], fb[1]);
      mma_bf16(acc[n + 1], fa, fb[2], fb[3]);
    }
  }
}

__device__ inline float dot(const float4& x, const float4& y, float sum) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

template <int Dim, int Tiles>
__device__ void product(float (&acc)[Tiles][4], const float* a, const float* b) {
  constexpr int kLd = Sizes<float, Dim>::kLd;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  a += lane / 4 * kLd;
  b += lane % 4 * 2 * kLd;
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;
#pragma unroll 2
  for (int k = 0; k < Dim; k += 4) {
    const float4 a0 = *reinterpret_cast<const float4*>(a + k);
    const float4 a1 = *reinterpret_cast<const float4*>(a + 8 * kLd + k);
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const float4 b0 = *reinterpret_cast<const float4*>(b + n * 8 * kLd + k);
      const float4 b1 = *reinterpret_cast<const float4*>(b + n * 8 * kLd + kLd + k);
      acc[n][0] = dot(a0, b0, acc[n][0]);
      acc[n][1] = dot(a0, b1, acc[n][1]);
      acc[n][2] = dot(a1, b0, acc[n][2]);
      acc[n][3] = dot(a1, b1, acc[n][3]);
    }
  }
}

/// out += P B: P in registers as product() leaves it, 8 * Tiles rows of B at b, 8 * Outs columns.
template <int Dim, int Tiles, int Outs>
__device__ void add_product(float (&out)[Outs][4], const float (&p)[Tiles][4], const bf16* b) {
  constexpr int kLd = Sizes<bf16, Dim>::kLd;
  static_assert(Tiles % 2 == 0 && Outs % 2 == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  b += (lane % 8 + lane / 8 % 2 * 8) * kLd + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < Tiles; k += 2) {
    const unsigned fa[4] = {pack_bf16(p[k][0], p[k][1]), pack_bf16(p[k][2], p[k][3]),
                            pack_bf16(p[k + 1][0], p[k + 1][1]),
                            pack_bf16(p[k + 1][2], p[k + 1][3])};
#pragma unroll
    for (int n = 0; n < Outs; n += 2) {
      unsigned fb[4];
      load_matrices_transposed(fb, b + k * 8 * kLd + n * 8);
      mma_bf16(out[n], fa, fb[0], fb[1]);
      mma_bf16(out[n + 1], fa, fb[2], fb[3]);
    }
  }
}

template <int Dim, int Tiles, int Outs>
__device__ void add_product(float (&out)[Outs][4], const float (&p)[Tiles][4], const float* b) {
  constexpr int kLd = Sizes<float, Dim>::kLd;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  b += lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int owner = (lane & ~3) | (k / 2);  // of column k in this lane's rows
      const float p0 = __shfl_sync(kFullWarp, p[n][k % 2], owner);
      const float p1 = __shfl_sync(kFullWarp, p[n][2 + k % 2], owner);
#pragma unroll
      for (int j = 0; j < Outs; ++j) {
        const float2 x = *reinterpret_cast<const float2*>(b + (n * 8 + k) * kLd + j * 8);
        out[j][0] = fmaf(p0, x.x, out[j][0]);
        out[j][1] = fmaf(p0, x.y, out[j][1]);
        out[j][2] = fmaf(p1, x.x, out[j][2]);
        out[j][3] = fmaf(p1, x.y, out[j][3]);
      }
    }
}

/// Stores the lane's rows row and row + 8 (those that exist), times a factor each, from column col.
template <int Outs, typename T>
__device__ void store_rows(const Head<T>& head,
                           const float (&out)[Outs][4],
                           float factor0,
                           float factor1,
                           int row,
                           int col,
                           const Problem& p) {
  col += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= p.tokens) continue;
    T* to = head.data + (row + 8 * half) * head.stride;
    const float factor = half == 0 ? factor0 : factor1;
#pragma unroll
    for (int n = 0; n < Outs; ++n) {
      const int c = col + n * 8;
      const float pair[2] = {factor * out[n][2 * half], factor * out[n][2 * half + 1]};
      if (p.packs) {
        if (c < p.dim) store_floats(to + c, pair);
      } else {
        if (c < p.dim) store_float(to + c, pair[0]);
        if (c + 1 < p.dim) store_float(to + c + 1, pair[1]);
      }
    }
  }
}

template <int Outs>
__device__ void clear(float (&out)[Outs][4]) {
#pragma unroll
  for (int n = 0; n < Outs; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;
}

/// Over the four lanes that share a row.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

/// Calls fn(first, tile a, tile b) for the tiles of Cols tokens that cover [begin, end), while the
/// next ones are on their way. `buffer` holds four tiles. What the caller has loaded before is
/// there at the first call. Every thread of the block must come here.
template <int Cols, int Dim, typename T, typename Fn>
__device__ void for_tiles(T* buffer,
                          const Head<const T>& a,
                          const Head<const T>& b,
                          int begin,
                          int end,
                          const Problem& p,
                          Fn&& fn) {
  constexpr int kTile = Cols * Sizes<T, Dim>::kLd;
  const auto load = [&](int first) {
    T* stage = buffer + first / Cols % 2 * 2 * kTile;
    load_tile<Cols, Dim>(stage, a, first, p);
    load_tile<Cols, Dim>(stage + kTile, b, first, p);
    copy_commit();
  };
  begin = begin / Cols * Cols;
  load(begin);
  for (int first = begin; first < end; first += Cols) {
    if (first + Cols < end) {
      load(first + Cols);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T* stage = buffer + first / Cols % 2 * 2 * kTile;
    fn(first, stage, stage + kTile);
    __syncthreads();  // before this stage is loaded again
  }
}

/// For a warp's 16 queries from `query` on: the keys from `key` on, which of them are seen.
template <int Cols>
struct Sight {
  bool any, all;
  __device__ Sight(int query, int key, const Problem& p)
      : any(key <= query + 15 && query - (key + Cols - 1) <= p.window),
        all(key + Cols - 1 <= query && query + 15 - key <= p.window) {}
};

template <typename T, int Dim>
__global__ void __launch_bounds__(Sizes<T, Dim>::kThreads)
    fwd_kernel(const T* q, const T* k, const T* v, T* o, float* lse, Problem p) {
  using S = Sizes<T, Dim>;
  constexpr int kCols = S::kFwdCols, kTiles = kCols / 8;
  extern __shared__ __align__(16) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int64_t batch = blockIdx.x / static_cast<unsigned>(p.heads);
  const int kv_head = head / (p.heads / p.kv_heads);
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * S::kRows;  // longest first
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int warp_query = first_query + warp_row, query = warp_query + lane / 4;

  load_tile<S::kRows, Dim>(queries, Head<const T>(q, p, p.heads, batch, head), first_query, p);
  float out[Dim / 8][4];
  clear(out);
  float most[2] = {-INFINITY, -INFINITY};  // scores of rows `query` and `query + 8`
  float base[2] = {};                      // their softmax is taken relative to 2^base
  float total[2] = {};                     // this lane's part of the sum of 2^(score - base)
  for_tiles<kCols, Dim>(
      queries + S::kRows * S::kLd, Head<const T>(k, p, p.kv_heads, batch, kv_head),
      Head<const T>(v, p, p.kv_heads, batch, kv_head), max(0, first_query - p.window),
      min(p.tokens, first_query + S::kRows), p, [&](int first_key, const T* keys, const T* values) {
        const Sight<kCols> sight(warp_query, first_key, p);
        if (!sight.any) return;
        float s[kTiles][4];
        product<Dim>(s, queries + warp_row * S::kLd, keys);
        if (!sight.all) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (!p.sees(query + i / 2 * 8, first_key + n * 8 + lane % 4 * 2 + i % 2))
                s[n][i] = -INFINITY;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float top = most[half];
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
          top = row_max(top);
          if (top == -INFINITY) top = 0.0f;  // this row has seen no key yet
          base[half] = top * p.scale_log2;
          const float shrink = exp2f(fmaf(most[half], p.scale_log2, -base[half]));
          most[half] = top;
          total[half] *= shrink;
#pragma unroll
          for (int n = 0; n < Dim / 8; ++n)
            out[n][2 * half] *= shrink, out[n][2 * half + 1] *= shrink;
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
              s[n][i] = exp2f(fmaf(s[n][i], p.scale_log2, -base[half]));
              total[half] += s[n][i];
            }
        }
        add_product<Dim>(out, s, values);
      });

  total[0] = row_sum(total[0]), total[1] = row_sum(total[1]);
  store_rows(Head<T>(o, p, p.heads, batch, head), out, 1.0f / total[0], 1.0f / total[1], query, 0,
             p);
  if (lane % 4 != 0) return;
  lse += (batch * p.heads + head) * p.tokens;
  if (query < p.tokens) lse[query] = (base[0] + log2f(total[0])) * kLn2;
  if (query + 8 < p.tokens) lse[query + 8] = (base[1] + log2f(total[1])) * kLn2;
}

/// delta (B, H, T) = Σ do o over each head.
template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads)
    delta_kernel(const T* grad_o, const T* o, float* delta, int64_t rows, int lanes, Problem p) {
  const RowLane at(lanes);
  float sum = 0.0f;
  for (int col = at.lane * N; at.row < rows && col < p.dim; col += lanes * N) {
    float x[N], y[N];
    load_floats(grad_o + at.row * p.dim + col, x), load_floats(o + at.row * p.dim + col, y);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += x[i] * y[i];
  }
  sum = group_sum(sum, lanes);
  if (at.row >= rows || at.lane != 0) return;
  const int64_t token = at.row / p.heads, head = at.row % p.heads;
  delta[(token / p.tokens * p.heads + head) * p.tokens + token % p.tokens] = sum;
}

template <typename T, int Dim>
__global__ void __launch_bounds__(Sizes<T, Dim>::kThreads) dq_kernel(const T* grad_o,
                                                                     const T* q,
                                                                     const T* k,
                                                                     const T* v,
                                                                     const float* lse,
                                                                     const float* delta,
                                                                     T* dq,
                                                                     Problem p) {
  using S = Sizes<T, Dim>;
  constexpr int kCols = S::kBwdCols, kTiles = kCols / 8;
  extern __shared__ __align__(16) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  T* grads = queries + S::kRows * S::kLd;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int64_t batch = blockIdx.x / static_cast<unsigned>(p.heads);
  const int kv_head = head / (p.heads / p.kv_heads);
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * S::kRows;  // longest first
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int warp_query = first_query + warp_row, query = warp_query + lane / 4;

  load_tile<S::kRows, Dim>(queries, Head<const T>(q, p, p.heads, batch, head), first_query, p);
  load_tile<S::kRows, Dim>(grads, Head<const T>(grad_o, p, p.heads, batch, head), first_query, p);
  float lse_log2[2] = {}, row_delta[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (query + 8 * half >= p.tokens) continue;
    const int64_t at = (batch * p.heads + head) * p.tokens + query + 8 * half;
    lse_log2[half] = lse[at] * kLog2e, row_delta[half] = delta[at];
  }
  float out[Dim / 8][4];
  clear(out);
  for_tiles<kCols, Dim>(
      grads + S::kRows * S::kLd, Head<const T>(k, p, p.kv_heads, batch, kv_head),
      Head<const T>(v, p, p.kv_heads, batch, kv_head), max(0, first_query - p.window),
      min(p.tokens, first_query + S::kRows), p, [&](int first_key, const T* keys, const T* values) {
        const Sight<kCols> sight(warp_query, first_key, p);
        if (!sight.any) return;
        float s[kTiles][4], dp[kTiles][4];
        product<Dim>(s, queries + warp_row * S::kLd, keys);
        product<Dim>(dp, grads + warp_row * S::kLd, values);
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool seen =
                sight.all || p.sees(query + i / 2 * 8, first_key + n * 8 + lane % 4 * 2 + i % 2);
            const float weight = exp2f(fmaf(s[n][i], p.scale_log2, -lse_log2[i / 2]));
            s[n][i] = seen ? weight * (dp[n][i] - row_delta[i / 2]) : 0.0f;
          }
        add_product<Dim>(out, s, keys);
      });
  store_rows(Head<T>(dq, p, p.heads, batch, head), out, p.scale, p.scale, query, 0, p);
}

/// Rows are keys, columns queries: scores are computed transposed.
template <typename T, int Dim>
__global__ void __launch_bounds__(Sizes<T, Dim>::kThreads) dkdv_kernel(const T* grad_o,
                                                                       const T* q,
                                                                       const T* k,
                                                                       const T* v,
                                                                       const float* lse,
                                                                       const float* delta,
                                                                       T* dk,
                                                                       T* dv,
                                                                       Problem p) {
  using S = Sizes<T, Dim>;
  constexpr int kCols = S::kBwdCols, kTiles = kCols / 8;
  extern __shared__ __align__(16) unsigned char shared[];
  T* keys = reinterpret_cast<T*>(shared);
  T* values = keys + S::kRows * S::kLd;
  const int kv_head = static_cast<int>(blockIdx.x) % p.kv_heads, group = p.heads / p.kv_heads;
  const int64_t batch = blockIdx.x / static_cast<unsigned>(p.kv_heads);
  const int first_key = static_cast<int>(blockIdx.y) * S::kRows;  // the longest first
  const int first_col = static_cast<int>(blockIdx.z) * S::kKeyCols;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int warp_key = first_key + warp_row, key = warp_key + lane / 4;

  load_tile<S::kRows, Dim>(keys, Head<const T>(k, p, p.kv_heads, batch, kv_head), first_key, p);
  load_tile<S::kRows, Dim>(values, Head<const T>(v, p, p.kv_heads, batch, kv_head), first_key, p);
  float out_k[S::kKeyCols / 8][4], out_v[S::kKeyCols / 8][4];
  clear(out_k), clear(out_v);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const float* head_lse = lse + (batch * p.heads + head) * p.tokens;
    const float* head_delta = delta + (batch * p.heads + head) * p.tokens;
    for_tiles<kCols, Dim>(
        values + S::kRows * S::kLd, Head<const T>(q, p, p.heads, batch, head),
        Head<const T>(grad_o, p, p.heads, batch, head), first_key,
        min(p.tokens, first_key + S::kRows + p.window), p,
        [&](int first_query, const T* queries, const T* grads) {
          const int last_query = first_query + kCols - 1;
          if (last_query < warp_key || first_query - (warp_key + 15) > p.window) return;
          const bool all = first_query >= warp_key + 15 && last_query - warp_key <= p.window &&
                           last_query < p.tokens;
          float s[kTiles][4], dp[kTiles][4];
          product<Dim>(s, keys + warp_row * S::kLd, queries);
          product<Dim>(dp, values + warp_row * S::kLd, grads);
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
              const int query = first_query + n * 8 + lane % 4 * 2 + side;
              const bool present = query < p.tokens;
              const float lse_log2 = present ? head_lse[query] * kLog2e : 0.0f;
              const float row_delta = present ? head_delta[query] : 0.0f;
#pragma unroll
              for (int i = side; i < 4; i += 2) {
                const bool seen = all || (present && p.sees(query, key + i / 2 * 8));
                const float weight = seen ? exp2f(fmaf(s[n][i], p.scale_log2, -lse_log2)) : 0.0f;
                s[n][i] = weight;
                dp[n][i] = weight * (dp[n][i] - row_delta);
              }
            }
          add_product<Dim>(out_v, s, grads + first_col);
          add_product<Dim>(out_k, dp, queries + first_col);
        });
  }
  store_rows(Head<T>(dk, p, p.kv_heads, batch, kv_head), out_k, p.scale, p.scale, key, first_col,
             p);
  store_rows(Head<T>(dv, p, p.kv_heads, batch, kv_head), out_v, 1.0f, 1.0f, key, first_col, p);
}

Problem problem_of(const char* op, const Shape& q, const Shape& k, int64_t window, double scale) {
  // 65535 tiles of 32 rows in a grid's second dimension; heads in its first.
  if (q[1] > 65535 * int64_t{32} || q[0] * q[2] > 0x7fffffff)
    fail(ErrorKind::unsupported,
         "{} on cuda: {} tokens and {} heads in all, at most {} and {} are possible", op, q[1],
         q[0] * q[2], 65535 * 32, 0x7fffffff);
  if (q[3] > 256)
    fail(ErrorKind::unsupported, "{} on cuda: heads of {} elements, at most 256 are possible", op,
         q[3]);
  return {.tokens = static_cast<int>(q[1]),
          .heads = static_cast<int>(q[2]),
          .kv_heads = static_cast<int>(k[2]),
          .dim = static_cast<int>(q[3]),
          .window = static_cast<int>(std::min(window, q[1])),
          .scale = static_cast<float>(scale),
          .scale_log2 = static_cast<float>(scale * 1.4426950408889634),
          .packs = false};
}

template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

dim3 grid_of(int64_t batch, int heads, int tokens, int rows, int parts) {
  return {static_cast<unsigned>(batch * heads), static_cast<unsigned>((tokens + rows - 1) / rows),
          static_cast<unsigned>(parts)};
}

template <typename T, int Dim>
void launch_fwd(const Exec& exec, const AttentionFwd& a, const Problem& p) {
  using S = Sizes<T, Dim>;
  allow_shared(fwd_kernel<T, Dim>, S::kFwdShared);
  fwd_kernel<T, Dim><<<grid_of(a.q.shape()[0], p.heads, p.tokens, S::kRows, 1), S::kThreads,
                       S::kFwdShared, cuda_stream(exec)>>>(a.q.as<T>(), a.k.as<T>(), a.v.as<T>(),
                                                           a.o.as<T>(), a.lse.as<float>(), p);
}

template <typename T, int N>
void launch_delta(const Exec& exec, const AttentionBwd& a, float* delta, const Problem& p) {
  const int64_t rows = a.o.shape().rows();
  const int lanes = lanes_for((p.dim + N - 1) / N);
  delta_kernel<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.grad_o.as<T>(), a.o.as<T>(), delta, rows, lanes, p);
}

template <typename T, int Dim>
void launch_bwd(const Exec& exec, const AttentionBwd& a, const float* delta, const Problem& p) {
  using S = Sizes<T, Dim>;
  const int64_t batch = a.q.shape()[0];
  allow_shared(dq_kernel<T, Dim>, S::kBwdShared);
  allow_shared(dkdv_kernel<T, Dim>, S::kBwdShared);
  dkdv_kernel<T, Dim><<<grid_of(batch, p.kv_heads, p.tokens, S::kRows, Dim / S::kKeyCols),
                        S::kThreads, S::kBwdShared, cuda_stream(exec)>>>(
      a.grad_o.as<T>(), a.q.as<T>(), a.k.as<T>(), a.v.as<T>(), a.lse.as<float>(), delta,
      a.dk.as<T>(), a.dv.as<T>(), p);
  dq_kernel<T, Dim><<<grid_of(batch, p.heads, p.tokens, S::kRows, 1), S::kThreads, S::kBwdShared,
                      cuda_stream(exec)>>>(a.grad_o.as<T>(), a.q.as<T>(), a.k.as<T>(), a.v.as<T>(),
                                           a.lse.as<float>(), delta, a.dq.as<T>(), p);
}

}  // namespace

void attention_fwd_cuda(const Exec& exec, const AttentionFwd& a) {
  Problem p = problem_of("attention", a.q.shape(), a.k.shape(), a.window, a.softmax_scale);
  with_cuda_type(a.q.dtype(), "attention", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    p.packs = rows_of_16_bytes<T>(p.dim, {a.q.as<T>(), a.k.as<T>(), a.v.as<T>(), a.o.as<T>()});
    if (p.dim <= 64) return launch_fwd<T, 64>(exec, a, p);
    if (p.dim <= 128) return launch_fwd<T, 128>(exec, a, p);
    launch_fwd<T, 256>(exec, a, p);
  });
  cuda::check_launch("attention");
}

void attention_bwd_cuda(const Exec& exec, const AttentionBwd& a) {
  if (attention_bwd_sm90(exec, a) || cudnn_attention_bwd(exec, a)) return;
  Problem p = problem_of("attention_bwd", a.q.shape(), a.k.shape(), a.window, a.softmax_scale);
  float* delta = reinterpret_cast<float*>(exec.scratch.data());
  with_cuda_type(a.q.dtype(), "attention_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    p.packs = rows_of_16_bytes<T>(p.dim, {a.grad_o.as<T>(), a.q.as<T>(), a.k.as<T>(), a.v.as<T>(),
                                          a.o.as<T>(), a.dq.as<T>(), a.dk.as<T>(), a.dv.as<T>()});
    p.packs ? launch_delta<T, kElementsOf16Bytes<T>>(exec, a, delta, p)
            : launch_delta<T, 1>(exec, a, delta, p);
    if (p.dim <= 64) return launch_bwd<T, 64>(exec, a, delta, p);
    if (p.dim <= 128) return launch_bwd<T, 128>(exec, a, delta, p);
    launch_bwd<T, 256>(exec, a, delta, p);
  });
  cuda::check_launch("attention_bwd");
}

}  // namespace tightloop
