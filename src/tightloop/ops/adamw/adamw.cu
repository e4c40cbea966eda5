#include "tightloop/ops/adamw/adamw_kernels.h"
#include "tightloop/ops/common/cuda_pack.cuh"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;  // elements a thread moves at once

struct Factors {
  float keep;        // 1 - lr decay
  float beta1_rest;  // 1 - beta1
  float beta2_rest;  // 1 - beta2
  float step;        // lr / bias1
  float inverse_bias2;
  float eps;
};

__device__ Factors factors_of(const float* hyper) {
  return {.keep = fmaf(-hyper[0], hyper[4], 1.0f),
          .beta1_rest = 1.0f - hyper[1],
          .beta2_rest = 1.0f - hyper[2],
          .step = hyper[0] / hyper[5],
          .inverse_bias2 = 1.0f / hyper[6],
          .eps = hyper[3]};
}

template <typename T>
__device__ void update(float g, T* p, T* m, T* v, const Factors& f) {
  const float before1 = load_as_float(m), before2 = load_as_float(v);
  const float m_new = before1 + f.beta1_rest * (g - before1);
  const float v_new = before2 + f.beta2_rest * (g * g - before2);
  const float denominator = sqrtf(v_new * f.inverse_bias2) + f.eps;
  store_float(p, load_as_float(p) * f.keep - f.step * m_new / denominator);
  store_float(m, m_new);
  store_float(v, v_new);
}

/// N elements a thread, the rest one each by the first threads.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    update_all(const float* g, const float* hyper, T* p, T* m, T* v, int64_t count) {
  const Factors f = factors_of(hyper);
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t packs = count / N;
  if (thread < packs) {
    const auto gs = reinterpret_cast<const Pack<float, N>*>(g)[thread];
    auto ps = reinterpret_cast<const Pack<T, N>*>(p)[thread];
    auto ms = reinterpret_cast<const Pack<T, N>*>(m)[thread];
    auto vs = reinterpret_cast<const Pack<T, N>*>(v)[thread];
#pragma unroll
    for (int j = 0; j < N; ++j) update(gs.at[j], ps.at + j, ms.at + j, vs.at + j, f);
    reinterpret_cast<Pack<T, N>*>(p)[thread] = ps;
    reinterpret_cast<Pack<T, N>*>(m)[thread] = ms;
    reinterpret_cast<Pack<T, N>*>(v)[thread] = vs;
  }
  const int64_t i = packs * N + thread;
  if (i < count) update(g[i], p + i, m + i, v + i, f);
}

}  // namespace

void adamw_cuda(const Exec& exec, const Adamw& a) {
  const int64_t count = a.p.elems();
  if (count == 0) return;
  with_cuda_type(a.p.dtype(), "adamw", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const float *g = a.g.as<float>(), *hyper = a.hyper.as<float>();
    T *p = a.p.as<T>(), *m = a.m.as<T>(), *v = a.v.as<T>();
    const bool packed = start_at_16_bytes({g, p, m, v});
    const unsigned blocks = grid_for(count, kThreads * (packed ? kPack : 1));
    const auto kernel = packed ? update_all<T, kPack> : update_all<T, 1>;
    kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(g, hyper, p, m, v, count);
  });
  cuda::check_launch("adamw");
}

}  // namespace tightloop
