#include "tightloop/ops/common/gemm_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

// GCC 12 warns about the undefined operands inside its own AVX-512 intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace tightloop::gemm_detail {
namespace {

#define TL_TARGET __attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw")))

using V = __m512;
constexpr int kLanes{16};
constexpr int kMr{14};
constexpr int kNr{32};
constexpr int64_t kBlockM{336};

#include "tightloop/ops/common/gemm_x86.inl"

TL_TARGET inline __attribute__((always_inline)) V load(const float* p) {
  return _mm512_loadu_ps(p);
}
TL_TARGET inline __attribute__((always_inline)) V load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
TL_TARGET inline __attribute__((always_inline)) void store(float* p, V v) {
  _mm512_storeu_ps(p, v);
}
TL_TARGET inline __attribute__((always_inline)) V set1(float x) {
  return _mm512_set1_ps(x);
}
TL_TARGET inline __attribute__((always_inline)) V fma(V a, V b, V c) {
  return _mm512_fmadd_ps(a, b, c);
}
TL_TARGET inline __attribute__((always_inline)) float fold(V v) {
  return fold8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

#include "tightloop/ops/common/gemm_kernels.inl"

constexpr Kernels kTable = table("avx512");

}  // namespace

const Kernels* avx512_kernels() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
             ? &kTable
             : nullptr;
}

}  // namespace tightloop::gemm_detail

#else

namespace tightloop::gemm_detail {
const Kernels* avx512_kernels() {
  return nullptr;
}
}  // namespace tightloop::gemm_detail

#endif
