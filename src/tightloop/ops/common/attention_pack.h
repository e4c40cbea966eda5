#pragma once

#include <cstdint>
#include <cstring>

#include "tightloop/core/dtype.h"
#include "tightloop/ops/common/simd.h"

/// Copies of keys, values and queries in the forms that the attention tiles read.
namespace tightloop::attention_detail {

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Hands out consecutive pieces of scratch, each a multiple of 64 bytes.
struct Pieces {
  float* next;
  float* take(int64_t floats) {
    float* piece = next;
    next += round_up(floats, 16);
    return piece;
  }
};

typedef float Quad __attribute__((vector_size(16)));

TL_INLINE Quad load_quad(const float* x) {
  Quad quad;
  std::memcpy(&quad, x, sizeof quad);
  return quad;
}
TL_INLINE Quad load_quad(const bf16* x) {
  return Quad{to_float(x[0]), to_float(x[1]), to_float(x[2]), to_float(x[3])};
}
TL_INLINE float load_one(float x) {
  return x;
}
TL_INLINE float load_one(bf16 x) {
  return to_float(x);
}

/// Copies `rows` rows of `dim` elements, `stride` apart, into rows of `ld` floats; zeros elsewhere,
/// up to `padded_rows` rows.
template <typename T>
void pack_rows(const T* x,
               int64_t stride,
               int64_t rows,
               int64_t padded_rows,
               int64_t dim,
               int64_t ld,
               float* packed) {
  for (int64_t r = 0; r < padded_rows; ++r, packed += ld) {
    int64_t d = 0;
    if (r < rows) {
      const T* from = x + r * stride;
      for (; d + 4 <= dim; d += 4) {
        const Quad quad = load_quad(from + d);
        std::memcpy(packed + d, &quad, sizeof quad);
      }
      for (; d < dim; ++d) packed[d] = load_one(from[d]);
    }
    for (; d < ld; ++d) packed[d] = 0.0f;
  }
}

/// Panels of `nr` rows, each stored as (dim, nr): packed[d * nr + j] = row j. Zeros beyond `rows`,
/// up to `padded_rows`, a multiple of 4.
template <typename T>
void pack_panels(const T* x,
                 int64_t stride,
                 int64_t rows,
                 int64_t padded_rows,
                 int64_t dim,
                 int64_t nr,
                 float* packed) {
  for (int64_t r = 0; r < padded_rows; r += 4) {
    float* to = packed + r / nr * nr * dim + r % nr;
    int64_t d = 0;
    if (r + 4 <= rows) {
      const T* from = x + r * stride;
      for (; d + 4 <= dim; d += 4) {
        const Quad a = load_quad(from + d), b = load_quad(from + stride + d);
        const Quad c = load_quad(from + 2 * stride + d), e = load_quad(from + 3 * stride + d);
        const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        const Quad ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Quad ce0 = __builtin_shufflevector(c, e, 0, 4, 1, 5);
        const Quad ce1 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
        const Quad column[4] = {__builtin_shufflevector(ab0, ce0, 0, 1, 4, 5),
                                __builtin_shufflevector(ab0, ce0, 2, 3, 6, 7),
                                __builtin_shufflevector(ab1, ce1, 0, 1, 4, 5),
                                __builtin_shufflevector(ab1, ce1, 2, 3, 6, 7)};
        for (int64_t i = 0; i < 4; ++i) std::memcpy(to + (d + i) * nr, &column[i], sizeof(Quad));
      }
    }
    for (; d < dim; ++d) {
      for (int64_t j = 0; j < 4; ++j)
        to[d * nr + j] = r + j < rows ? load_one(x[(r + j) * stride + d]) : 0.0f;
    }
  }
}

}  // namespace tightloop::attention_detail
