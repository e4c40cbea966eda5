// The kernels of one instruction set. Included inside an anonymous namespace by one .cpp file per
// set, which has defined TL_TARGET (the function attribute that enables it), the vector type V with
// kLanes floats, kMr x kNr (the register tile), kBlockM, and the wrappers load, store, set1, fma, fold.
// Functions of the standard library stay out: a copy compiled for the wrong processor could win at
// link time.

#define TL_INLINE TL_TARGET inline __attribute__((always_inline))

constexpr int kNv{kNr / kLanes};
static_assert(kNr % kLanes == 0 && kMr <= kMaxMr && kNr <= kMaxNr);

TL_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

TL_INLINE float widen(float x) {
  return x;
}
TL_INLINE float widen(bf16 x) {
  return to_float(x);
}
TL_INLINE void narrow(float x, float& to) {
  to = x;
}
TL_INLINE void narrow(float x, bf16& to) {
  to = to_bf16(x);
}

// ---- micro-kernel: R rows of the tile, accumulators in registers, B streamed, A broadcast

template <int R>
TL_TARGET void micro(int64_t kc, const float* a, const float* b, float* c, int64_t ldc, bool add) {
  V acc[R][kNv];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + kNr - 1, 1);
#pragma GCC unroll 4
    for (int j = 0; j < kNv; ++j) acc[i][j] = set1(0.0f);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < kc; ++k) {
    V bv[kNv];
#pragma GCC unroll 4
    for (int j = 0; j < kNv; ++j) bv[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V av = set1(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kNv; ++j) acc[i][j] = fma(av, bv[j], acc[i][j]);
    }
    a += kMr;
    b += kNr;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kNv; ++j) {
      float* to = c + i * ldc + j * kLanes;
      store(to, add ? load(to) + acc[i][j] : acc[i][j]);
    }
  }
}

// ---- packing

template <int W, typename T, bool Scaled>
TL_INLINE void copy_run(const T* src, float row_scale, const float* col_scale, float* dst) {
#ifdef TL_GEMM_X86
  constexpr int kEights = W / 8;
#pragma GCC unroll 4
  for (int i = 0; i < kEights; ++i) {
    __m256 v = load8(src + 8 * i);
    if constexpr (Scaled)
      v = _mm256_mul_ps(_mm256_mul_ps(v, _mm256_set1_ps(row_scale)),
                        _mm256_loadu_ps(col_scale + 8 * i));
    _mm256_storeu_ps(dst + 8 * i, v);
  }
  constexpr int kDone = W;
  if constexpr (W % 8 != 0) {  // six more: four and two
    __m128 four = load4(src + 8 * kEights), two = load2(src + 8 * kEights + 4);
    if constexpr (Scaled) {
      const __m128 row = _mm_set1_ps(row_scale);
      four = _mm_mul_ps(_mm_mul_ps(four, row), load4(col_scale + 8 * kEights));
      two = _mm_mul_ps(_mm_mul_ps(two, row), load2(col_scale + 8 * kEights + 4));
    }
    _mm_storeu_ps(dst + 8 * kEights, four);
    _mm_storel_pi(reinterpret_cast<__m64*>(dst + 8 * kEights + 4), two);
  }
#else
  constexpr int kDone = 0;
#endif
#pragma GCC unroll 16
  for (int i = kDone; i < W; ++i) {
    float v = widen(src[i]);
    if constexpr (Scaled) v = v * row_scale * col_scale[i];
    dst[i] = v;
  }
}

constexpr int64_t kPackPrefetchRows{8};

/// A stored row is one k: panels are copied from contiguous runs.
template <int W, typename T, bool Scaled>
TL_TARGET void pack_k_major(
    const PackSource& from, int64_t extent, int64_t kc, float* dst, int64_t panel_stride) {
  const T* src = static_cast<const T*>(from.data);
  const int64_t full = extent / W;
  const int64_t rest = extent - full * W;
  for (int64_t k0 = 0; k0 < kc; k0 += 4) {
    const int64_t k1 = least(k0 + 4, kc);
    for (int64_t k = k0 + kPackPrefetchRows; k < k1 + kPackPrefetchRows; ++k) {
      for (int64_t i = 0; i < extent; i += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(src + k * from.ld + i);
    }
    for (int64_t p = 0; p < full; ++p) {
      for (int64_t k = k0; k < k1; ++k) {
        copy_run<W, T, Scaled>(src + k * from.ld + p * W, Scaled ? from.row_scale[k] : 1.0f,
                               Scaled ? from.col_scale + p * W : nullptr,
                               dst + p * panel_stride + k * W);
      }
    }
    if (rest == 0) continue;
    for (int64_t k = k0; k < k1; ++k) {
      float* to = dst + full * panel_stride + k * W;
      for (int64_t i = 0; i < W; ++i) {
        float v = 0.0f;
        if (i < rest) {
          v = widen(src[k * from.ld + full * W + i]);
          if constexpr (Scaled) v = v * from.row_scale[k] * from.col_scale[full * W + i];
        }
        to[i] = v;
      }
    }
  }
}

#ifdef TL_GEMM_X86
/// Rows 8g.. of a panel of W, eight k: transposes what load8 reads.
template <int W, typename T, bool Scaled>
TL_INLINE void transpose_group(const PackSource& from,
                               const T* src,
                               int64_t row0,
                               int64_t rows,
                               int g,
                               int64_t k,
                               float* dst) {
  constexpr int kGroups = (W + 7) / 8;
  const bool whole = g < kGroups - 1 || W % 8 == 0;
  __m256 r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int64_t row = 8 * g + i;
    r[i] = _mm256_setzero_ps();
    if ((whole || row < W) && row < rows) {
      r[i] = load8(src + row * from.ld + k);
      if constexpr (Scaled)
        r[i] = _mm256_mul_ps(_mm256_mul_ps(r[i], _mm256_set1_ps(from.row_scale[row0 + row])),
                             _mm256_loadu_ps(from.col_scale + k));
    }
  }
  transpose8(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    float* to = dst + (k + i) * W + 8 * g;
    if (whole) {
      _mm256_storeu_ps(to, r[i]);
    } else {  // W % 8 is 6
      _mm_storeu_ps(to, _mm256_castps256_ps128(r[i]));
      _mm_storel_pi(reinterpret_cast<__m64*>(to + 4), _mm256_extractf128_ps(r[i], 1));
    }
  }
}
static_assert(kNr % 8 == 0 && kMr % 8 == 6);
#endif

/// A stored row is one i: panels are transposed.
template <int W, typename T, bool Scaled>
TL_TARGET void pack_row_major(
    const PackSource& from, int64_t extent, int64_t kc, float* dst, int64_t panel_stride) {
  const T* all = static_cast<const T*>(from.data);
  for (int64_t row0 = 0; row0 < extent; row0 += W, dst += panel_stride) {
    const T* src = all + row0 * from.ld;
    const int64_t rows = least(W, extent - row0);
    int64_t k = 0;
#ifdef TL_GEMM_X86
    // Two steps of eight k use up a cache line of each row before the next group of rows can evict
    // it: rows a power of two apart share their cache sets.
    for (; k + 8 <= kc; k += 16) {
      const int steps = k + 16 <= kc ? 2 : 1;
      for (int64_t i = 0; i < W; ++i) __builtin_prefetch(src + (W + i) * from.ld + k);
      for (int g = 0; g < (W + 7) / 8; ++g) {
        for (int s = 0; s < steps; ++s)
          transpose_group<W, T, Scaled>(from, src, row0, rows, g, k + 8 * s, dst);
      }
      if (steps == 1) {
        k += 8;
        break;
      }
    }
#endif
    for (; k < kc; ++k) {
      for (int64_t i = 0; i < W; ++i) {
        float v = 0.0f;
        if (i < rows) {
          v = widen(src[i * from.ld + k]);
          if constexpr (Scaled) v = v * from.row_scale[row0 + i] * from.col_scale[k];
        }
        dst[k * W + i] = v;
      }
    }
  }
}

// ---- few rows: dot products with the weights read once, in order

constexpr int64_t kRowPrefetchBytes{16384};

/// R rows at once. Sums run in kSum lanes whatever the vector width, folded by halves, so that the
/// bits do not depend on it.
template <int R, typename T>
TL_INLINE void dot_rows(
    const float* x, int64_t ldx, const T* w, int64_t K, float* out, int64_t out_ld) {
  constexpr int kSum = R <= 2 ? 32 : 16;
  constexpr int kVecs = kSum / kLanes;
  V acc[R][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) acc[r][j] = set1(0.0f);
  }
  int64_t k = 0;
  for (; k + 32 <= K; k += 32) {
#pragma GCC unroll 2
    for (int line = 0; line < static_cast<int>(sizeof(T)) / 2; ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(w + k) + kRowPrefetchBytes + 64 * line);
#pragma GCC unroll 2
    for (int s = 0; s < 32; s += kSum) {
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) {
        const V wv = load(w + k + s + j * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          acc[r][j] = fma(load(x + r * ldx + k + s + j * kLanes), wv, acc[r][j]);
      }
    }
  }
  for (; k < K; k += kSum) {
    float wt[kSum], xt[kSum];
    const int64_t n = least(kSum, K - k);
    for (int64_t i = 0; i < kSum; ++i) wt[i] = i < n ? widen(w[k + i]) : 0.0f;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      for (int64_t i = 0; i < kSum; ++i) xt[i] = i < n ? x[r * ldx + k + i] : 0.0f;
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j)
        acc[r][j] = fma(load(xt + j * kLanes), load(wt + j * kLanes), acc[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int half = kVecs / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int j = 0; j < half; ++j) acc[r][j] = acc[r][j] + acc[r][j + half];
    }
    out[r * out_ld] = fold(acc[r][0]);
  }
}

template <int R, typename T>
TL_TARGET void rows_kernel(const float* x,
                           int64_t ldx,
                           const void* weights,
                           int64_t ldw,
                           int64_t K,
                           int cols,
                           float* tile) {
  const T* w = static_cast<const T*>(weights);
  constexpr int kFirst = R < 4 ? R : 4;
  for (int n = 0; n < cols; ++n) dot_rows<kFirst, T>(x, ldx, w + n * ldw, K, tile + n, kNr);
  if constexpr (R > 4) {  // the weights are in the cache by now
    for (int n = 0; n < cols; ++n)
      dot_rows<R - 4, T>(x + 4 * ldx, ldx, w + n * ldw, K, tile + 4 * kNr + n, kNr);
  }
}

// ---- epilogues: from a finished tile in the cache to C

template <GemmEpilogue E, typename C, typename X>
TL_INLINE void finish_tile(const float* tile, int64_t rows, int64_t cols, const TileStore& to) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* t = tile + i * kNr;
    const float* partial = to.partial ? to.partial + i * to.partial_ld : nullptr;
    C* c = static_cast<C*>(to.c) + i * to.c_ld;
    const X* e = static_cast<const X*>(to.e) + i * to.e_ld;
    float row[kNr];
    for (int64_t j = 0; j < kNr; ++j) row[j] = t[j];
    if (partial) {
      for (int64_t j = 0; j < cols; ++j) row[j] = partial[j] + row[j];
    }
    if (to.add_c) {
      for (int64_t j = 0; j < cols; ++j) row[j] = widen(c[j]) + row[j];
    }
    if constexpr (E == GemmEpilogue::relu2) {
      for (int64_t j = 0; j < kNr; ++j) {
        const float v = row[j] > 0.0f ? row[j] : (row[j] != row[j] ? row[j] : 0.0f);
        row[j] = v * v;
      }
    }
    if constexpr (E == GemmEpilogue::relu2_bwd) {
      for (int64_t j = 0; j < cols; ++j) row[j] = row[j] * (2.0f * __builtin_sqrtf(widen(e[j])));
    }
    if constexpr (E == GemmEpilogue::add) {
      for (int64_t j = 0; j < cols; ++j) row[j] = widen(e[j]) + row[j];
    }
    for (int64_t j = 0; j < cols; ++j) narrow(row[j], c[j]);
  }
}

template <typename C, typename X>
TL_INLINE void finish_typed(const float* tile, int64_t rows, int64_t cols, const TileStore& to) {
  switch (to.epilogue) {
    case GemmEpilogue::none:
      finish_tile<GemmEpilogue::none, C, X>(tile, rows, cols, to);
      break;
    case GemmEpilogue::relu2:
      finish_tile<GemmEpilogue::relu2, C, X>(tile, rows, cols, to);
      break;
    case GemmEpilogue::relu2_bwd:
      finish_tile<GemmEpilogue::relu2_bwd, C, X>(tile, rows, cols, to);
      break;
    case GemmEpilogue::add:
      finish_tile<GemmEpilogue::add, C, X>(tile, rows, cols, to);
      break;
  }
}

template <typename C>
TL_INLINE void finish_any(const float* tile, int64_t rows, int64_t cols, const TileStore& to) {
  if (to.e_dtype == DType::bf16) {
    finish_typed<C, bf16>(tile, rows, cols, to);
  } else {
    finish_typed<C, float>(tile, rows, cols, to);
  }
}

TL_TARGET void finish(const float* tile, int64_t rows, int64_t cols, const TileStore& to) {
  if (to.c_dtype == DType::bf16) {
    finish_any<bf16>(tile, rows, cols, to);
  } else {
    finish_any<float>(tile, rows, cols, to);
  }
}

// ---- the table

template <int R>
constexpr MicroKernel micro_or_null() {
  if constexpr (R >= 1 && R <= kMr) {
    return micro<R>;
  } else {
    return nullptr;
  }
}

constexpr Kernels table(const char* name) {
  return Kernels{
      .name = name,
      .mr = kMr,
      .nr = kNr,
      .block_m = kBlockM,
      .micro = {nullptr, micro_or_null<1>(), micro_or_null<2>(), micro_or_null<3>(),
                micro_or_null<4>(), micro_or_null<5>(), micro_or_null<6>(), micro_or_null<7>(),
                micro_or_null<8>(), micro_or_null<9>(), micro_or_null<10>(), micro_or_null<11>(),
                micro_or_null<12>(), micro_or_null<13>(), micro_or_null<14>()},
      .pack_a_k_major = {{pack_k_major<kMr, float, false>, pack_k_major<kMr, float, true>},
                         {pack_k_major<kMr, bf16, false>, pack_k_major<kMr, bf16, true>}},
      .pack_a_row_major = {{pack_row_major<kMr, float, false>, pack_row_major<kMr, float, true>},
                           {pack_row_major<kMr, bf16, false>, pack_row_major<kMr, bf16, true>}},
      .pack_b_k_major = {{pack_k_major<kNr, float, false>, pack_k_major<kNr, float, true>},
                         {pack_k_major<kNr, bf16, false>, pack_k_major<kNr, bf16, true>}},
      .pack_b_row_major = {{pack_row_major<kNr, float, false>, pack_row_major<kNr, float, true>},
                           {pack_row_major<kNr, bf16, false>, pack_row_major<kNr, bf16, true>}},
      .rows = {{nullptr, rows_kernel<1, float>, rows_kernel<2, float>, rows_kernel<3, float>,
                rows_kernel<4, float>, rows_kernel<5, float>, rows_kernel<6, float>,
                rows_kernel<7, float>, rows_kernel<8, float>},
               {nullptr, rows_kernel<1, bf16>, rows_kernel<2, bf16>, rows_kernel<3, bf16>,
                rows_kernel<4, bf16>, rows_kernel<5, bf16>, rows_kernel<6, bf16>,
                rows_kernel<7, bf16>, rows_kernel<8, bf16>}},
      .finish = finish,
  };
}

#undef TL_INLINE
