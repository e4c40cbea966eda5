#include "tightloop/ops/common/gemm_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tightloop::gemm_detail {
namespace {

#define TL_TARGET __attribute__((target("avx2,fma")))

using V = __m256;
constexpr int kLanes{8};
constexpr int kMr{6};
constexpr int kNr{16};
constexpr int64_t kBlockM{192};

#include "tightloop/ops/common/gemm_x86.inl"

TL_TARGET inline __attribute__((always_inline)) V load(const float* p) {
  return load8(p);
}
TL_TARGET inline __attribute__((always_inline)) V load(const bf16* p) {
  return load8(p);
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
TL_TARGET inline __attribute__((always_inline)) float fold(V v) {
  return fold8(v);
}

#include "tightloop/ops/common/gemm_kernels.inl"

constexpr Kernels kTable = table("avx2");

}  // namespace

const Kernels* avx2_kernels() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kTable : nullptr;
}

}  // namespace tightloop::gemm_detail

#else

namespace tightloop::gemm_detail {
const Kernels* avx2_kernels() {
  return nullptr;
}
}  // namespace tightloop::gemm_detail

#endif
