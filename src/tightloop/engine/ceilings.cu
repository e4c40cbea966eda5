#include <algorithm>

#include "tightloop/engine/ceilings_cuda.h"
#include "tightloop/engine/memory.h"
#include "tightloop/ops/common/cuda_kernel.cuh"
#include "tightloop/ops/common/gemm_cuda.h"

namespace tightloop {
namespace {

constexpr int64_t kStreamBytes{int64_t{1} << 30};  // each of two buffers
constexpr int64_t kSide{8192};
constexpr int kRepeats{5};
constexpr int kThreads{512};
constexpr int64_t kBlocks{132 * 16};  // enough to fill any device many times over

__global__ void fill_random(float4* x, int64_t n) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b9u;
    float v[4];
    for (float& out : v) {
      h = (h ^ (h >> 16)) * 0x85ebca6bu;
      h = (h ^ (h >> 13)) * 0xc2b2ae35u;
      out = static_cast<float>(static_cast<int32_t>(h)) * 0x1p-31f;
    }
    x[i] = make_float4(v[0], v[1], v[2], v[3]);
  }
}

__global__ void to_bf16_kernel(const float* x, bf16* y, int64_t n) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    store_float(y + i, x[i]);
}

__global__ void read_kernel(const float4* x, int64_t n, float* sink) {
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float4 v = x[i];
    sum += v.x + v.y + v.z + v.w;
  }
  if (sum == 1e30f) *sink = sum;  // never
}

__global__ void copy_kernel(const float4* x, float4* y, int64_t n) {
#pragma unroll 4
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    y[i] = x[i];
}

__global__ void update_kernel(float4* x, int64_t n) {
#pragma unroll 4
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    float4 v = x[i];
    v.x = 0.5f * v.x + 0.25f, v.y = 0.5f * v.y + 0.25f;
    v.z = 0.5f * v.z + 0.25f, v.w = 0.5f * v.w + 0.25f;
    x[i] = v;
  }
}

/// The best rate of a few repetitions, `work` per second.
template <typename Fn>
double best_rate(double work, Fn&& enqueue) {
  enqueue();  // warm
  double best = 0.0;
  cuda::Event from, to;
  for (int i = 0; i < kRepeats; ++i) {
    from.record();
    enqueue();
    to.record();
    to.wait();
    best = std::max(best, work / cuda::Event::seconds(from, to));
  }
  return best;
}

}  // namespace

Ceilings measure_ceilings_cuda(DType dtype) {
  Ceilings c;
  const auto stream = static_cast<cudaStream_t>(cuda::stream());
  const MemoryBlock block(2 * kStreamBytes, Device::cuda);
  auto* x = reinterpret_cast<float4*>(block.data());
  auto* y = reinterpret_cast<float4*>(block.data() + kStreamBytes);
  const int64_t n = kStreamBytes / int64_t{sizeof(float4)};
  const auto blocks = static_cast<unsigned>(kBlocks);
  fill_random<<<blocks, kThreads, 0, stream>>>(x, n);
  const auto bytes = static_cast<double>(kStreamBytes);
  c.read_gbs = 1e-9 * best_rate(bytes, [&] {
                 read_kernel<<<blocks, kThreads, 0, stream>>>(x, n, reinterpret_cast<float*>(y));
               });
  c.copy_gbs =
      1e-9 * best_rate(2.0 * bytes, [&] { copy_kernel<<<blocks, kThreads, 0, stream>>>(x, y, n); });
  c.update_gbs =
      1e-9 * best_rate(2.0 * bytes, [&] { update_kernel<<<blocks, kThreads, 0, stream>>>(y, n); });

  // A, B and C of the product, random-normal in size if not in shape; never zeros.
  constexpr int64_t elems = kSide * kSide;
  auto* a = reinterpret_cast<std::byte*>(x);
  if (dtype == DType::bf16) {
    to_bf16_kernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<float*>(x),
                                                    reinterpret_cast<bf16*>(y), 2 * elems);
    a = reinterpret_cast<std::byte*>(y);
  }
  std::byte* b = a + elems * size_of(dtype);
  std::byte* out = a + 2 * elems * size_of(dtype);
  const Exec exec{.device = Device::cuda, .scratch = {}, .stream = stream};
  const Gemm g{.form = GemmForm::nt,
               .M = kSide,
               .N = kSide,
               .K = kSide,
               .a = {.data = a, .dtype = dtype, .ld = kSide},
               .b = {.data = b, .dtype = dtype, .ld = kSide},
               .c = {.data = out, .dtype = dtype, .ld = kSide}};
  const double flops = 2.0 * static_cast<double>(kSide) * static_cast<double>(elems);
  c.fma_gflops = 1e-9 * best_rate(flops, [&] { gemm_cuda(exec, g); });
  c.fma_kernel = dtype == DType::bf16 ? "cuBLASLt bf16" : "cuBLASLt f32";
  cuda::check_launch("measuring the ceilings");
  return c;
}

}  // namespace tightloop
