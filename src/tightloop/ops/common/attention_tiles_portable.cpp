#include <cmath>
#include <cstring>

#include "tightloop/ops/common/attention_tiles.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

// Vectors of four floats: SSE2 on x86-64, NEON on aarch64.
namespace tightloop::attention_detail {
namespace {

#define TL_TARGET

typedef float V __attribute__((vector_size(16)));
constexpr int kLanes{4};
constexpr int kMr{6};
constexpr int kVecs{2};

inline __attribute__((always_inline)) V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline __attribute__((always_inline)) void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
inline __attribute__((always_inline)) V set1(float x) {
  return V{x, x, x, x};
}
inline __attribute__((always_inline)) V fma(V a, V b, V c) {
#if defined(__aarch64__)
  return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline __attribute__((always_inline)) float fold_max(V v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
inline __attribute__((always_inline)) float fold_add(V v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}

#include "tightloop/ops/common/attention_tiles.inl"

constexpr Kernels kTable{"portable", kMr, kNr, fwd_block, bwd_pair};

}  // namespace

const Kernels* portable_kernels() {
  return &kTable;
}

const Kernels& native_kernels() {
  if (const Kernels* k = avx512_kernels()) return *k;
  if (const Kernels* k = avx2_kernels()) return *k;
  return kTable;
}

}  // namespace tightloop::attention_detail
