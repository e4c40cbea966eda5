#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/common/scaled_term.cuh"
#include "tightloop/ops/scaled_add/scaled_add_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;

struct Forward {
  CudaFactor a, b;
  __device__ void operator()(const float (&x_z)[2], float (&y)[1]) const {
    y[0] = a.value() * x_z[0] + b.value() * x_z[1];
  }
};

template <typename T>
struct Bwd {
  const T *dy, *x, *z;  // x and z null without their sums
  T *dx, *dz;
  int64_t n;
  CudaFactor a, b;
  float *sum_x, *sum_z;  // one of each a block
};

/// N elements from i on; adds to the two sums.
template <int N, typename T>
__device__ void bwd_elements(
    const Bwd<T>& q, int64_t i, float fa, float fb, float& sum_x, float& sum_z) {
  float dy[N], other[N];
  load_floats<N>(q.dy + i, dy);
  if (q.x != nullptr) {
    load_floats<N>(q.x + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) sum_x += dy[j] * other[j];
  }
  if (q.z != nullptr) {
    load_floats<N>(q.z + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) sum_z += dy[j] * other[j];
  }
#pragma unroll
  for (int j = 0; j < N; ++j) other[j] = fb * dy[j], dy[j] *= fa;
  store_floats<N>(q.dx + i, dy);
  store_floats<N>(q.dz + i, other);
}

/// The grid is the same for every size and card, and with it the order of the sums.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) bwd_kernel(Bwd<T> q) {
  const float fa = q.a.value(), fb = q.b.value();
  float sum_x = 0.0f, sum_z = 0.0f;
  for (int64_t i = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * N; i < q.n;
       i += static_cast<int64_t>(kScaledAddCudaBlocks) * kThreads * N) {
    if (i + N <= q.n) {
      bwd_elements<N>(q, i, fa, fb, sum_x, sum_z);
    } else {
      for (int64_t rest = i; rest < q.n; ++rest) bwd_elements<1>(q, rest, fa, fb, sum_x, sum_z);
    }
  }
  if (q.x != nullptr) {
    const float sum = block_sum<kThreads>(sum_x);
    if (threadIdx.x == 0) q.sum_x[blockIdx.x] = sum;
  }
  if (q.z != nullptr) {
    const float sum = block_sum<kThreads>(sum_z);
    if (threadIdx.x == 0) q.sum_z[blockIdx.x] = sum;
  }
}

}  // namespace

void scaled_add_fwd_cuda(const Exec& exec, const ScaledAddFwd& s) {
  with_cuda_type(s.x.dtype(), "scaled_add", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, "scaled_add", s.x.elems(), {s.x.as<T>(), s.z.as<T>()}, {s.y.as<T>()},
                      Forward{{s.ca, s.a, s.ia}, {s.cb, s.b, s.ib}});
  });
}

void scaled_add_bwd_cuda(const Exec& exec, const ScaledAddBwd& s) {
  const int64_t n = s.dy.elems();
  if (n == 0) return;
  auto* sums = reinterpret_cast<float*>(exec.scratch.data());
  with_cuda_type(s.dy.dtype(), "scaled_add_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Bwd<T> q{.dy = s.dy.as<T>(),
                   .x = s.da.empty() ? nullptr : s.x.as<T>(),
                   .z = s.db.empty() ? nullptr : s.z.as<T>(),
                   .dx = s.dx.as<T>(),
                   .dz = s.dz.as<T>(),
                   .n = n,
                   .a = {s.ca, s.a, s.ia},
                   .b = {s.cb, s.b, s.ib},
                   .sum_x = sums,
                   .sum_z = sums + kScaledAddCudaBlocks};
    constexpr int kPack = kElementsOf16Bytes<T>;
    if (rows_of_16_bytes<T>(kPack, {q.dy, q.x, q.z, q.dx, q.dz})) {
      bwd_kernel<T, kPack><<<kScaledAddCudaBlocks, kThreads, 0, cuda_stream(exec)>>>(q);
    } else {
      bwd_kernel<T, 1><<<kScaledAddCudaBlocks, kThreads, 0, cuda_stream(exec)>>>(q);
    }
  });
  add_factor_gradients(exec, sums, kScaledAddCudaBlocks, {s.ca, s.da, s.ia}, {s.cb, s.db, s.ib});
  cuda::check_launch("scaled_add_bwd");
}

}  // namespace tightloop
