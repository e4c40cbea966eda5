#include "tightloop/ops/common/gemm_kernels.h"

namespace tightloop::gemm_detail {
namespace {

// Vectors of the compiler, four floats: registers that every 64-bit processor has. Without a fused
// multiply-add the bits differ from those of the other kernels.
#define TL_TARGET

typedef float V __attribute__((vector_size(16)));
constexpr int kLanes{4};
constexpr int kMr{6};
constexpr int kNr{8};
constexpr int64_t kBlockM{96};

inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline V load(const bf16* p) {
  return V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline void store(float* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
inline V set1(float x) {
  return V{x, x, x, x};
}
inline V fma(V a, V b, V c) {
  return a * b + c;
}
inline float fold(V v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}

#include "tightloop/ops/common/gemm_kernels.inl"

constexpr Kernels kTable = table("portable");

}  // namespace

const Kernels* portable_kernels() {
  return &kTable;
}

}  // namespace tightloop::gemm_detail
