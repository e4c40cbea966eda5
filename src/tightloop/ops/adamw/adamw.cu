#include <algorithm>

#include "tightloop/ops/adamw/adamw_kernels.h"
#include "tightloop/ops/common/cuda_kernel.cuh"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;              // elements a thread moves at once
constexpr int64_t kMostBlocks{4096};  // beyond, a thread takes several packs

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

/// N elements a thread at once, the rest one by one.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    update_all(const float* g, const float* hyper, T* p, T* m, T* v, int64_t count) {
  const Factors f = factors_of(hyper);
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t packs = count / N;
  for (int64_t i = thread; i < packs; i += gridDim.x * static_cast<int64_t>(kThreads)) {
    const auto gs = reinterpret_cast<const Pack<float, N>*>(g)[i];
    auto ps = reinterpret_cast<const Pack<T, N>*>(p)[i];
    auto ms = reinterpret_cast<const Pack<T, N>*>(m)[i];
    auto vs = reinterpret_cast<const Pack<T, N>*>(v)[i];
#pragma unroll
    for (int j = 0; j < N; ++j) update(gs.at[j], ps.at + j, ms.at + j, vs.at + j, f);
    reinterpret_cast<Pack<T, N>*>(p)[i] = ps;
    reinterpret_cast<Pack<T, N>*>(m)[i] = ms;
    reinterpret_cast<Pack<T, N>*>(v)[i] = vs;
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
    const bool packed = aligned_for_packs(g, p, m, v);
    const auto blocks = static_cast<unsigned>(
        std::min<int64_t>(kMostBlocks, grid_for(count, kThreads * (packed ? kPack : 1))));
    const auto kernel = packed ? update_all<T, kPack> : update_all<T, 1>;
    kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(g, hyper, p, m, v, count);
  });
  cuda::check_launch("adamw");
}

}  // namespace tightloop
