#include <cmath>

#include "tightloop/ops/common/attention_tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tightloop::attention_detail {
namespace {

#define TL_TARGET __attribute__((target("avx2,fma")))

using V = __m256;
constexpr int kLanes{8};
constexpr int kMr{6};
constexpr int kVecs{2};

TL_TARGET inline __attribute__((always_inline)) V load(const float* p) {
  return _mm256_loadu_ps(p);
}
TL_TARGET inline __attribute__((always_inline)) void store(float* p, V v) {
  _mm256_storeu_ps(p, v);
}
TL_TARGET inline __attribute__((always_inline)) V set1(float x) {
  return _mm256_set1_ps(x);
}
TL_TARGET inline __attribute__((always_inline)) V fma(V a, V b, V c) {
  return _mm256_fmadd_ps(a, b, c);
}
TL_TARGET inline __attribute__((always_inline)) float fold_max(V v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
TL_TARGET inline __attribute__((always_inline)) float fold_add(V v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

#include "tightloop/ops/common/attention_tiles.inl"

constexpr Kernels kTable{"avx2", kMr, kNr, fwd_block, bwd_pair};

}  // namespace

const Kernels* avx2_kernels() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kTable : nullptr;
}

}  // namespace tightloop::attention_detail

#else

namespace tightloop::attention_detail {
const Kernels* avx2_kernels() {
  return nullptr;
}
}  // namespace tightloop::attention_detail

#endif
