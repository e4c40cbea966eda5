#include "tightloop/core/threads.h"
#include "tightloop/ops/adamw/adamw_kernels.h"
#include "tightloop/ops/common/denormals.h"
#include "tightloop/ops/common/simd.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain{16384};
constexpr int64_t kBlock{32};   // elements between prefetches: two cache lines of f32
constexpr int64_t kAhead{128};  // how many elements ahead

struct Factors {
  float keep;        // 1 - lr decay
  float beta1_rest;  // 1 - beta1
  float beta2_rest;  // 1 - beta2
  float step;        // lr / bias1
  float inverse_bias2;
  float eps;
};

TL_INLINE float load(const float* x) {
  return *x;
}
TL_INLINE float load(const bf16* x) {
  return to_float(*x);
}
TL_INLINE void save(float* x, float value) {
  *x = value;
}
TL_INLINE void save(bf16* x, float value) {
  *x = to_bf16(value);
}

template <typename T>
TL_INLINE void update_range(const float* __restrict g,
                            T* __restrict p,
                            T* __restrict m,
                            T* __restrict v,
                            int64_t count,
                            const Factors& f) {
  for (int64_t i = 0; i < count; ++i) {
    const float gradient = g[i], before1 = load(m + i), before2 = load(v + i);
    const float m_new = before1 + f.beta1_rest * (gradient - before1);
    const float v_new = before2 + f.beta2_rest * (gradient * gradient - before2);
    const float denominator = __builtin_sqrtf(v_new * f.inverse_bias2) + f.eps;
    save(p + i, load(p + i) * f.keep - f.step * m_new / denominator);
    save(m + i, m_new);
    save(v + i, v_new);
  }
}

/// Memory-bound with seven streams: prefetching keeps more lines in flight than the hardware does.
template <typename T>
TL_INLINE void update_all(const float* g, T* p, T* m, T* v, int64_t count, const Factors& f) {
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    for (int64_t line = 0; line < kBlock; line += 16) __builtin_prefetch(g + i + kAhead + line, 0);
    for (int64_t line = 0; line < kBlock; line += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(p + i + kAhead + line, 1);
      __builtin_prefetch(m + i + kAhead + line, 1);
      __builtin_prefetch(v + i + kAhead + line, 1);
    }
    update_range(g + i, p + i, m + i, v + i, kBlock, f);
  }
  update_range(g + i, p + i, m + i, v + i, count - i, f);
}

TL_CLONES void update_f32(
    const float* g, float* p, float* m, float* v, int64_t count, const Factors& f) {
  update_all(g, p, m, v, count, f);
}

TL_CLONES void update_bf16(
    const float* g, bf16* p, bf16* m, bf16* v, int64_t count, const Factors& f) {
  update_all(g, p, m, v, count, f);
}

}  // namespace

void adamw_cpu(const Adamw& a) {
  const float* hyper = a.hyper.as<float>();
  const auto h = [&](int i) { return static_cast<double>(hyper[i]); };
  const Factors f{.keep = static_cast<float>(1.0 - h(0) * h(4)),
                  .beta1_rest = static_cast<float>(1.0 - h(1)),
                  .beta2_rest = static_cast<float>(1.0 - h(2)),
                  .step = static_cast<float>(h(0) / h(5)),
                  .inverse_bias2 = static_cast<float>(1.0 / h(6)),
                  .eps = hyper[3]};
  const float* g = a.g.as<float>();
  const bool wide = a.p.dtype() == DType::f32;
  parallel_for(a.p.elems(), kGrain, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    if (wide)
      update_f32(g + begin, a.p.as<float>() + begin, a.m.as<float>() + begin,
                 a.v.as<float>() + begin, end - begin, f);
    else
      update_bf16(g + begin, a.p.as<bf16>() + begin, a.m.as<bf16>() + begin, a.v.as<bf16>() + begin,
                  end - begin, f);
  });
}

}  // namespace tightloop
