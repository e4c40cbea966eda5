#include "tightloop/ops/common/gemm_kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace tightloop::gemm_detail {
namespace {

#define TL_TARGET

using V = float32x4_t;
constexpr int kLanes{4};
constexpr int kMr{8};
constexpr int kNr{12};
constexpr int64_t kBlockM{192};

inline V load(const float* p) {
  return vld1q_f32(p);
}
inline V load(const bf16* p) {
  const uint16x4_t half = vld1_u16(reinterpret_cast<const uint16_t*>(p));
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}
inline void store(float* p, V v) {
  vst1q_f32(p, v);
}
inline V set1(float x) {
  return vdupq_n_f32(x);
}
inline V fma(V a, V b, V c) {
  return vfmaq_f32(c, a, b);
}
inline float fold(V v) {
  const float32x2_t half = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}

#include "tightloop/ops/common/gemm_kernels.inl"

constexpr Kernels kTable = table("neon");

}  // namespace

const Kernels* neon_kernels() {
  return &kTable;
}

}  // namespace tightloop::gemm_detail

#else

namespace tightloop::gemm_detail {
const Kernels* neon_kernels() {
  return nullptr;
}
}  // namespace tightloop::gemm_detail

#endif
