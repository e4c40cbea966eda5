#pragma once

#include <cstdint>

/// Put before a plain function with simple loops: the compiler makes one version per instruction
/// set and the right one is chosen when the program starts. Helpers called inside must be
/// TL_INLINE, or the loop stays scalar: that includes std::sqrt, std::max, std::bit_cast (use
/// __builtin_sqrtf, a comparison, __builtin_bit_cast). Off under sanitizers and where ifunc does
/// not exist. The levels test for features; "arch=haswell" would match that one Intel model only.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(TL_SANITIZED) && \
    defined(__GNUC__) && !defined(__clang__)
#define TL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TL_CLONES
#endif
#define TL_INLINE inline __attribute__((always_inline))

/// Put before a loop whose iterations are independent of each other even where its pointers are
/// equal (work in place): no check for overlap, no scalar version.
#if defined(__GNUC__) && !defined(__clang__)
#define TL_IVDEP _Pragma("GCC ivdep")
#else
#define TL_IVDEP
#endif

namespace tightloop {

/// 2^x for -126.5 <= x <= 127.49: the integer part goes into the exponent, the rest through a
/// degree-6 polynomial on [-1/2, 1/2] (Taylor of exp(r ln 2)). Relative error below 1e-7.
TL_INLINE float exp2_in_range(float x) {
  // Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits.
  const float shifted = x + 12582912.0f;
  const int32_t n = __builtin_bit_cast(int32_t, shifted) - 0x4b400000;
  const float r = x - (shifted - 12582912.0f);
  float p = 1.5403530e-4f;
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return p * __builtin_bit_cast(float, (n + 127) << 23);
}

/// 2^x for any x: 0 below -126.5, saturates above 127, NaN stays NaN.
TL_INLINE float exp2_approx(float x) {
  x = x > 127.49f ? 127.49f : x;
  return x < -126.5f ? 0.0f : exp2_in_range(x);
}

/// e^x, relative error below 1.2e-6 for |x| < 20, growing with |x| as the float32 product x·log2(e)
/// does.
TL_INLINE float exp_approx(float x) {
  return exp2_approx(x * 1.44269504f);
}

/// The same for x <= 0, at a fifth less work: what a softmax around its largest logit needs.
TL_INLINE float exp_nonpositive(float x) {
  x *= 1.44269504f;
  return x < -126.5f ? 0.0f : exp2_in_range(x);
}

/// tanh x, relative error below 4e-7: near 0 an odd polynomial (coefficients of Cephes' tanhf),
/// elsewhere 1 - 2 / (1 + e^2|x|).
TL_INLINE float tanh_approx(float x) {
  const float a = x < 0.0f ? -x : x;
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = x + x * (z * p);
  // From 10 on tanh rounds to 1, and below it the exponential is in range.
  const float large = 1.0f - 2.0f / (1.0f + exp2_in_range(a * 2.88539008f));
  return a < 0.625f ? small : __builtin_copysignf(a > 10.0f ? 1.0f : large, x);
}

/// 1 / (1 + e^-x).
TL_INLINE float sigmoid_approx(float x) {
  return 1.0f / (1.0f + exp_approx(-x));
}

}  // namespace tightloop
