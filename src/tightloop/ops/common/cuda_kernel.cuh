#pragma once

// What the CUDA kernels of all operations share: element types, loads, reductions in a fixed order,
// launches. float32 arithmetic; f32 or bf16 storage.

#include <cstdint>
#include <cuda_runtime.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/dtype.h"
#include "tightloop/core/error.h"
#include "tightloop/core/exec.h"
#include "tightloop/core/tensor.h"

namespace tightloop {

inline cudaStream_t cuda_stream(const Exec& exec) {
  return static_cast<cudaStream_t>(exec.stream);
}

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

/// Element i of an array of f32 or bf16, as f32 and back (round to nearest even).
__device__ inline float load_as_float(const float* p) {
  return *p;
}
__device__ inline float load_as_float(const bf16* p) {
  return __uint_as_float(static_cast<unsigned>(p->bits) << 16);
}
__device__ inline void store_float(float* p, float x) {
  *p = x;
}
__device__ inline void store_float(bf16* p, float x) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
}

/// Two neighbours in one word, rounded to nearest even.
__device__ inline uint32_t pack_bf16(float first, float second) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
}

/// N elements at once, aligned to their size (N * sizeof(T) a power of two, at most 16 bytes).
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

/// Sum or maximum over the 32 lanes, in every lane, in an order fixed by the lanes.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

/// Sum over a block of Threads threads, in every thread. All threads must call it.
template <int Threads>
__device__ inline float block_sum(float x) {
  static_assert(Threads % kWarp == 0);
  __shared__ float partial[Threads / kWarp];
  x = warp_sum(x);
  __syncthreads();  // of an earlier call
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < Threads / kWarp; ++i) total += partial[i];
  return total;
}
template <int Threads>
__device__ inline float block_max(float x) {
  static_assert(Threads % kWarp == 0);
  __shared__ float partial[Threads / kWarp];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float most = partial[0];
#pragma unroll
  for (int i = 1; i < Threads / kWarp; ++i) most = fmaxf(most, partial[i]);
  return most;
}

/// Blocks of `per_block` that cover `n`; at least one. Error{unsupported} beyond a grid's limit.
inline unsigned grid_for(int64_t n, int64_t per_block) {
  const int64_t blocks = n <= per_block ? 1 : (n + per_block - 1) / per_block;
  if (blocks > 0x7fffffff)
    fail(ErrorKind::unsupported, "CUDA: a launch of {} blocks, at most {} are possible", blocks,
         0x7fffffff);
  return static_cast<unsigned>(blocks);
}

/// Calls fn with a null pointer of the stored element type, float or bf16. nvcc wants no __device__
/// lambda inside a generic one: those belong into a function template that fn calls.
template <typename Fn>
void with_cuda_type(DType dtype, const char* op, Fn&& fn) {
  if (dtype == DType::f32) return fn(static_cast<float*>(nullptr));
  if (dtype == DType::bf16) return fn(static_cast<bf16*>(nullptr));
  fail(ErrorKind::unsupported, "{} on cuda: {} is not supported", op, name_of(dtype));
}

constexpr int kElementThreads = 256;

template <typename Fn>
__global__ void for_each_kernel(int64_t n, Fn fn) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    fn(i);
}

/// fn(i) for every i below n, one thread each: `[=] __device__(int64_t i) { … }`.
template <typename Fn>
void cuda_for_each(const Exec& exec, const char* op, int64_t n, Fn fn) {
  if (n == 0) return;
  for_each_kernel<<<grid_for(n, kElementThreads), kElementThreads, 0, cuda_stream(exec)>>>(n, fn);
  cuda::check_launch(op);
}

/// The same in double, for sums over whole tensors.
__device__ inline double warp_sum_f64(double x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}
template <int Threads>
__device__ inline double block_sum_f64(double x) {
  static_assert(Threads % kWarp == 0);
  __shared__ double partial[Threads / kWarp];
  x = warp_sum_f64(x);
  __syncthreads();  // of an earlier call
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < Threads / kWarp; ++i) total += partial[i];
  return total;
}

}  // namespace tightloop
