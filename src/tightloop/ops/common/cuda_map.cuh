#pragma once

#include "tightloop/ops/common/cuda_pack.cuh"

/// Element-wise operations over whole tensors, 16 bytes of every array a thread.
namespace tightloop {

template <typename T, int Count>
struct Arrays {
  T* at[Count];
};

template <typename T, int N, int Ins, int Outs, typename Fn>
__device__ inline void map_pack(const Arrays<const T, Ins>& in,
                                const Arrays<T, Outs>& out,
                                int64_t i,
                                const Fn& fn) {
  float x[Ins][N], y[Outs][N];
#pragma unroll
  for (int k = 0; k < Ins; ++k) load_floats<N>(in.at[k] + i, x[k]);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    float from[Ins], to[Outs];
#pragma unroll
    for (int k = 0; k < Ins; ++k) from[k] = x[k][j];
    fn(from, to);
#pragma unroll
    for (int k = 0; k < Outs; ++k) y[k][j] = to[k];
  }
#pragma unroll
  for (int k = 0; k < Outs; ++k) store_floats<N>(out.at[k] + i, y[k]);
}

template <typename T, int N, int Ins, int Outs, typename Fn>
__global__ void __launch_bounds__(kElementThreads)
    map_kernel(Arrays<const T, Ins> in, Arrays<T, Outs> out, int64_t n, Fn fn) {
  const int64_t i = (blockIdx.x * static_cast<int64_t>(kElementThreads) + threadIdx.x) * N;
  if (i + N <= n) {
    map_pack<T, N>(in, out, i, fn);
  } else {
    for (int64_t rest = i; rest < n; ++rest) map_pack<T, 1>(in, out, rest, fn);
  }
}

/// fn(from, to) for every element: from[k] of in[k], to[k] for out[k], all f32. Any output may be
/// any input. Fn is a struct with a __device__ operator().
template <typename T, int Ins, int Outs, typename Fn>
void cuda_map(const Exec& exec,
              const char* op,
              int64_t n,
              const Arrays<const T, Ins>& in,
              const Arrays<T, Outs>& out,
              const Fn& fn) {
  if (n == 0) return;
  constexpr int kPack = kElementsOf16Bytes<T>;
  bool packs = true;
  for (const T* p : in.at) packs = packs && rows_of_16_bytes<T>(kPack, {p});
  for (const T* p : out.at) packs = packs && rows_of_16_bytes<T>(kPack, {p});
  if (packs) {
    map_kernel<T, kPack>
        <<<grid_for(n, kElementThreads * kPack), kElementThreads, 0, cuda_stream(exec)>>>(in, out,
                                                                                          n, fn);
  } else {
    map_kernel<T, 1>
        <<<grid_for(n, kElementThreads), kElementThreads, 0, cuda_stream(exec)>>>(in, out, n, fn);
  }
  cuda::check_launch(op);
}

}  // namespace tightloop
