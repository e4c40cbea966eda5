// Attention on blocks, for one instruction set. Before this file is included come: TL_TARGET, the
// vector type V of kLanes floats, kMr and kVecs, and load, store, set1, fma, fold_max, fold_add.
//
// A tile is kMr x kNr running sums in registers. Four products use it, with A read by rows or by
// columns and B always by rows of kNr consecutive floats:
//   scores = Q K^T (and dP = dO V^T)  A: rows of Q,     B: panels of K^T, summed over dim
//   O += P V (and dQ += dS K)         A: rows of P,     B: rows of V,     summed over keys
//   dV += P^T dO (and dK += dS^T Q)   A: columns of P,  B: rows of dO,    summed over queries
// Tiles that no query sees are skipped; elements outside the window become 0 in P and dS.

constexpr int64_t kNr = kVecs * kLanes;
static_assert(kBlock % kMr == 0 && kBlock % kNr == 0);

typedef int VInt __attribute__((vector_size(sizeof(V))));

#define TL_TILE TL_TARGET inline __attribute__((always_inline))

TL_TILE int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}
TL_TILE int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/// 2^x for x <= 127, as exp2_approx; 0 below -126.5. NaN stays NaN.
TL_TILE V exp2_vector(V x) {
  const V low = set1(-127.0f), magic = set1(12582912.0f);
  x = x < low ? low : x;
  const V shifted = x + magic;
  const V r = x - (shifted - magic);
  V p = set1(1.5403530e-4f);
  p = fma(p, r, set1(1.3333558e-3f));
  p = fma(p, r, set1(9.6181291e-3f));
  p = fma(p, r, set1(5.5504109e-2f));
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.0f));
  // n + 127 is the exponent of 2^n; for n = -127 the bits are those of 0.
  const VInt scale = ((VInt)shifted - 0x4b400000 + 127) << 23;
  return p * (V)scale;
}

TL_TILE void fill_zero(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0.0f;
}

/// c (kMr, kNr) = or += Σ_k a(i, k) b(k, :), with a(i, k) = a[i * lda + k], or a[k * lda + i] by
/// columns.
template <bool kByColumns>
TL_TILE void tile(const float* a,
                  int64_t lda,
                  const float* b,
                  int64_t ldb,
                  int64_t count,
                  float* c,
                  int64_t ldc,
                  bool add) {
  V sum[kMr][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kMr; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[i][v] = add ? load(c + i * ldc + v * kLanes) : set1(0.0f);
  }
  for (int64_t k = 0; k < count; ++k) {
    V row[kVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kMr; ++i) {
      const V x = set1(kByColumns ? a[i] : a[i * lda]);
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[i][v] = fma(x, row[v], sum[i][v]);
    }
    a += kByColumns ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kMr; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) store(c + i * ldc + v * kLanes, sum[i][v]);
  }
}

// The three products as functions of their own, so that each tile loop exists once.
TL_TARGET __attribute__((noinline)) void product_rows(const float* a,
                                                      int64_t lda,
                                                      const float* b,
                                                      int64_t ldb,
                                                      int64_t count,
                                                      float* c,
                                                      int64_t ldc,
                                                      bool add) {
  tile<false>(a, lda, b, ldb, count, c, ldc, add);
}
TL_TARGET __attribute__((noinline)) void product_columns(const float* a,
                                                         int64_t lda,
                                                         const float* b,
                                                         int64_t ldb,
                                                         int64_t count,
                                                         float* c,
                                                         int64_t ldc) {
  tile<true>(a, lda, b, ldb, count, c, ldc, true);
}

/// Keys first..last-1 that some of the queries i0..i1 see, within a block.
struct Span {
  int64_t first, last;
};
TL_TILE Span seen_keys(int64_t i0, int64_t i1, int64_t window, int64_t begin, int64_t end) {
  return {greater(begin, i0 - window), lesser(end, i1 + 1)};
}

/// One row of scores s[begin..end) becomes weights, of which [lo, hi) are visible; the running
/// maximum (base 2), the running sum of weights and the unfinished output follow.
TL_TILE void softmax_row(float* s,
                         int64_t begin,
                         int64_t end,
                         int64_t lo,
                         int64_t hi,
                         float scale_log2,
                         float* largest,
                         float* total,
                         float* sums,
                         int64_t width) {
  if (lo >= hi) return fill_zero(s + begin, end - begin);
  constexpr float kHidden = -1e30f;
  for (int64_t j = begin; j < lo; ++j) s[j] = kHidden;
  for (int64_t j = hi; j < end; ++j) s[j] = kHidden;
  V best = load(s + begin);
  for (int64_t j = begin + kLanes; j < end; j += kLanes) {
    const V x = load(s + j);
    best = best > x ? best : x;
  }
  const float row_best = fold_max(best) * scale_log2;
  if (row_best > *largest) {
    const V factor = exp2_vector(set1(*largest - row_best));
    for (int64_t d = 0; d < width; d += kLanes) store(sums + d, load(sums + d) * factor);
    *total *= factor[0];
    *largest = row_best;
  }
  const V scale = set1(scale_log2), shift = set1(-*largest);
  V sum = set1(0.0f);
  for (int64_t j = begin; j < end; j += kLanes) {
    const V p = exp2_vector(fma(load(s + j), scale, shift));
    store(s + j, p);
    sum = sum + p;
  }
  *total += fold_add(sum);
}

TL_TARGET void fwd_block(const FwdBlock& f) {
  const int64_t query_end = f.first_query + f.queries, width = f.ld - kRowPad;
  for (int64_t r = 0; r < f.queries; ++r) {
    f.largest[r] = -HUGE_VALF;
    f.total[r] = 0.0f;
  }
  for (int64_t r = 0; r < (f.queries + kMr - 1) / kMr * kMr; ++r)
    fill_zero(f.sums + r * f.ld, width);

  const int64_t lowest = greater(0, f.first_query - f.window);
  for (int64_t k0 = lowest / kBlock * kBlock; k0 < query_end; k0 += kBlock) {
    const int64_t key_end = lesser(k0 + kBlock, query_end);
    for (int64_t key = k0; key < key_end; key += kNr) {
      const float* panel = f.k_panels + key * f.dim;
      for (int64_t r = 0; r < f.queries; r += kMr) {
        const int64_t i0 = f.first_query + r, i1 = lesser(i0 + kMr, query_end) - 1;
        if (key > i1 || key + kNr <= i0 - f.window) continue;
        product_rows(f.q + r * f.ld, f.ld, panel, kNr, f.dim, f.scores + r * kScoreLd + (key - k0),
                     kScoreLd, false);
      }
    }
    for (int64_t r = 0; r < f.queries; ++r) {
      // Scores exist for the panels that the row's tile sees.
      const int64_t i0 = f.first_query + r / kMr * kMr, i1 = lesser(i0 + kMr, query_end) - 1;
      const Span seen = seen_keys(i0, i1, f.window, k0, key_end);
      if (seen.first >= seen.last) continue;
      const int64_t i = f.first_query + r;
      const Span own = seen_keys(i, i, f.window, k0, key_end);
      softmax_row(f.scores + r * kScoreLd, (seen.first - k0) / kNr * kNr,
                  (seen.last - k0 + kNr - 1) / kNr * kNr, own.first - k0, own.last - k0,
                  f.scale_log2, f.largest + r, f.total + r, f.sums + r * f.ld, width);
    }
    for (int64_t d = 0; d < width; d += kNr) {
      for (int64_t r = 0; r < f.queries; r += kMr) {
        const int64_t i0 = f.first_query + r, i1 = lesser(i0 + kMr, query_end) - 1;
        const Span seen = seen_keys(i0, i1, f.window, k0, key_end);
        if (seen.first >= seen.last) continue;
        product_rows(f.scores + r * kScoreLd + (seen.first - k0), kScoreLd,
                     f.v + seen.first * f.ld + d, f.ld, seen.last - seen.first,
                     f.sums + r * f.ld + d, f.ld, true);
      }
    }
  }
  for (int64_t r = 0; r < f.queries; ++r) {
    const float inverse = 1.0f / f.total[r];
    const float* sums = f.sums + r * f.ld;
    float* o = f.o + r * f.o_stride;
    for (int64_t d = 0; d < f.dim; ++d) o[d] = sums[d] * inverse;
    if (f.lse != nullptr) f.lse[r] = (f.largest[r] + __builtin_log2f(f.total[r])) * 0.69314718f;
  }
}

/// P and dS of a tile from its scores and dP. Queries i0.. against keys j0..
TL_TILE void weights_tile(const BwdPair& f, int64_t r, int64_t column, bool whole) {
  const V scale = set1(f.scale), scale_log2 = set1(f.scale_log2);
  for (int64_t row = r; row < r + kMr; ++row) {
    float *p = f.p + row * kScoreLd + column, *ds = f.ds + row * kScoreLd + column;
    const V lse = set1(-f.lse_log2[row]), delta = set1(-f.delta[row]);
    for (int64_t v = 0; v < kNr; v += kLanes) {
      const V weight = exp2_vector(fma(load(p + v), scale_log2, lse));
      store(p + v, weight);
      store(ds + v, weight * fma(load(ds + v), scale, delta));
    }
    if (whole) continue;
    const int64_t i = f.first_query + row, j0 = f.first_key + column;
    for (int64_t j = 0; j < kNr; ++j) {
      if (j0 + j <= i && j0 + j >= i - f.window) continue;
      p[j] = 0.0f;
      ds[j] = 0.0f;
    }
  }
}

TL_TARGET void bwd_pair(const BwdPair& f) {
  const int64_t query_end = f.first_query + f.queries, key_end = f.first_key + f.keys;
  const int64_t width = f.ld - kRowPad;
  for (int64_t column = 0; column < f.keys; column += kNr) {
    const int64_t key = f.first_key + column;
    for (int64_t r = 0; r < f.queries; r += kMr) {
      const int64_t i0 = f.first_query + r, i1 = lesser(i0 + kMr, query_end) - 1;
      float *p = f.p + r * kScoreLd + column, *ds = f.ds + r * kScoreLd + column;
      if (key > i1 || key + kNr <= i0 - f.window) {
        for (int64_t i = 0; i < kMr; ++i) {
          fill_zero(p + i * kScoreLd, kNr);
          fill_zero(ds + i * kScoreLd, kNr);
        }
        continue;
      }
      product_rows(f.q + r * f.ld, f.ld, f.k_panels + column * f.dim, kNr, f.dim, p, kScoreLd,
                   false);
      product_rows(f.grad_o + r * f.ld, f.ld, f.v_panels + column * f.dim, kNr, f.dim, ds, kScoreLd,
                   false);
      weights_tile(f, r, column, key + kNr - 1 <= i0 && key >= i1 - f.window);
    }
  }
  for (int64_t d = 0; d < width; d += kNr) {
    for (int64_t j = 0; j < f.keys; j += kMr) {
      // Queries that see some of the keys j0..j0 + kMr - 1.
      const int64_t j0 = f.first_key + j;
      const int64_t first = greater(f.first_query, j0) - f.first_query;
      const int64_t last = lesser(query_end, j0 + kMr + f.window) - f.first_query;
      if (first >= last) continue;
      const int64_t from = first * f.ld + d, at = first * kScoreLd + j;
      product_columns(f.p + at, kScoreLd, f.grad_o + from, f.ld, last - first, f.dv + j * f.ld + d,
                      f.ld);
      product_columns(f.ds + at, kScoreLd, f.q + from, f.ld, last - first, f.dk + j * f.ld + d,
                      f.ld);
    }
  }
  for (int64_t d = 0; d < width; d += kNr) {
    for (int64_t r = 0; r < f.queries; r += kMr) {
      const int64_t i0 = f.first_query + r, i1 = lesser(i0 + kMr, query_end) - 1;
      const Span seen = seen_keys(i0, i1, f.window, f.first_key, key_end);
      if (seen.first >= seen.last) continue;
      const int64_t j = seen.first - f.first_key;
      product_rows(f.ds + r * kScoreLd + j, kScoreLd, f.k + j * f.ld + d, f.ld,
                   seen.last - seen.first, f.dq + r * f.ld + d, f.ld, true);
    }
  }
}

#undef TL_TILE
