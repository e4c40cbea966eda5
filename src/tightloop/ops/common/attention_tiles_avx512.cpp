#include <cmath>

#include "tightloop/ops/common/attention_tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>

// GCC 12 warns about the undefined operands inside its own AVX-512 intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace tightloop::attention_detail {
namespace {

#define TL_TARGET __attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw")))

using V = __m512;
constexpr int kLanes{16};
constexpr int kMr{12};
constexpr int kVecs{2};

TL_TARGET inline __attribute__((always_inline)) V load(const float* p) {
  return _mm512_loadu_ps(p);
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
TL_TARGET inline __attribute__((always_inline)) float fold_max(V v) {
  return _mm512_reduce_max_ps(v);
}
TL_TARGET inline __attribute__((always_inline)) float fold_add(V v) {
  return _mm512_reduce_add_ps(v);
}

#include "tightloop/ops/common/attention_tiles.inl"

constexpr Kernels kTable{"avx512", kMr, kNr, fwd_block, bwd_pair};

}  // namespace

const Kernels* avx512_kernels() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
             ? &kTable
             : nullptr;
}

}  // namespace tightloop::attention_detail

#else

namespace tightloop::attention_detail {
const Kernels* avx512_kernels() {
  return nullptr;
}
}  // namespace tightloop::attention_detail

#endif
