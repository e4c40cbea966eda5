#include "tightloop/ops/common/cuda_kernel.cuh"
#include "tightloop/ops/rmsnorm/rmsnorm_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kWideRow = 1024;  // columns from which a whole block takes a row

/// One row by Lanes threads that share the sum `reduce` makes.
template <typename T, typename Reduce>
__device__ void fwd_row(const T* x,
                        const T* weight,
                        T* y,
                        float* rstd,
                        int64_t cols,
                        int lane,
                        int lanes,
                        float eps,
                        float scale,
                        Reduce&& reduce) {
  float squares = 0.0f;
  for (int64_t c = lane; c < cols; c += lanes) {
    const float v = load_as_float(x + c);
    squares += v * v;
  }
  const float r = 1.0f / sqrtf(reduce(squares) / static_cast<float>(cols) + eps);
  if (lane == 0) *rstd = r;
  const float a = scale * r;
  for (int64_t c = lane; c < cols; c += lanes) {
    const float w = weight == nullptr ? 1.0f : load_as_float(weight + c);
    store_float(y + c, a * load_as_float(x + c) * w);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fwd_warps(const T* x,
                                                      const T* weight,
                                                      T* y,
                                                      float* rstd,
                                                      int64_t rows,
                                                      int64_t cols,
                                                      float eps,
                                                      float scale) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  fwd_row(x + row * cols, weight, y + row * cols, rstd + row, cols,
          static_cast<int>(threadIdx.x % kWarp), kWarp, eps, scale,
          [](float v) { return warp_sum(v); });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fwd_blocks(
    const T* x, const T* weight, T* y, float* rstd, int64_t cols, float eps, float scale) {
  const int64_t row = blockIdx.x;
  fwd_row(x + row * cols, weight, y + row * cols, rstd + row, cols, static_cast<int>(threadIdx.x),
          kThreads, eps, scale, [](float v) { return block_sum<kThreads>(v); });
}

/// dx of one row; with `saved` = y there is no weight.
template <typename T, typename Reduce>
__device__ void bwd_row(const T* dy,
                        const T* saved,
                        float rstd,
                        const T* weight,
                        T* dx,
                        int64_t cols,
                        int lane,
                        int lanes,
                        float scale,
                        Reduce&& reduce) {
  float dot = 0.0f;
  for (int64_t c = lane; c < cols; c += lanes) {
    const float w = weight == nullptr ? 1.0f : load_as_float(weight + c);
    dot += load_as_float(dy + c) * w * load_as_float(saved + c);
  }
  const float mean = reduce(dot) / static_cast<float>(cols);
  // saved is x = xhat / rstd, or y = scale * xhat.
  const float a = rstd * scale;
  const float b = weight == nullptr ? rstd / scale * mean : a * rstd * rstd * mean;
  for (int64_t c = lane; c < cols; c += lanes) {
    const float w = weight == nullptr ? 1.0f : load_as_float(weight + c);
    store_float(dx + c, a * load_as_float(dy + c) * w - b * load_as_float(saved + c));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) bwd_warps(const T* dy,
                                                      const T* saved,
                                                      const float* rstd,
                                                      const T* weight,
                                                      T* dx,
                                                      int64_t rows,
                                                      int64_t cols,
                                                      float scale) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  bwd_row(dy + row * cols, saved + row * cols, rstd[row], weight, dx + row * cols, cols,
          static_cast<int>(threadIdx.x % kWarp), kWarp, scale, [](float v) { return warp_sum(v); });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) bwd_blocks(const T* dy,
                                                       const T* saved,
                                                       const float* rstd,
                                                       const T* weight,
                                                       T* dx,
                                                       int64_t cols,
                                                       float scale) {
  const int64_t row = blockIdx.x;
  bwd_row(dy + row * cols, saved + row * cols, rstd[row], weight, dx + row * cols, cols,
          static_cast<int>(threadIdx.x), kThreads, scale,
          [](float v) { return block_sum<kThreads>(v); });
}

/// partial[block][c] = sum over the block's rows of scale * dy * x * rstd: rows in order.
template <typename T>
__global__ void dweight_partial(const T* dy,
                                const T* x,
                                const float* rstd,
                                float* partial,
                                int64_t rows,
                                int64_t cols,
                                float scale) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (c >= cols) return;
  const int64_t block = blockIdx.y;
  float sum = 0.0f;
  for (int64_t r = block * rows / kRmsnormBlocks; r < (block + 1) * rows / kRmsnormBlocks; ++r)
    sum += load_as_float(dy + r * cols + c) * load_as_float(x + r * cols + c) * rstd[r];
  partial[block * cols + c] = scale * sum;
}

__global__ void dweight_sum(const float* partial, float* dweight, int64_t cols) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (c >= cols) return;
  float sum = dweight[c];
  for (int64_t block = 0; block < kRmsnormBlocks; ++block) sum += partial[block * cols + c];
  dweight[c] = sum;
}

}  // namespace

void rmsnorm_fwd_cuda(const Exec& exec, const RmsnormFwd& a) {
  const int64_t cols = a.x.shape().cols(), rows = a.x.shape().rows();
  if (rows == 0 || cols == 0) return;
  const auto eps = static_cast<float>(a.eps), scale = static_cast<float>(a.scale);
  with_cuda_type(a.x.dtype(), "rmsnorm", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* weight = a.weight.empty() ? nullptr : a.weight.as<T>();
    if (cols < kWideRow) {
      fwd_warps<T><<<grid_for(rows, kWarps), kThreads, 0, cuda_stream(exec)>>>(
          a.x.as<T>(), weight, a.y.as<T>(), a.rstd.as<float>(), rows, cols, eps, scale);
    } else {
      fwd_blocks<T><<<grid_for(rows, 1), kThreads, 0, cuda_stream(exec)>>>(
          a.x.as<T>(), weight, a.y.as<T>(), a.rstd.as<float>(), cols, eps, scale);
    }
  });
  cuda::check_launch("rmsnorm");
}

void rmsnorm_bwd_cuda(const Exec& exec, const RmsnormBwd& a) {
  const int64_t cols = a.dy.shape().cols(), rows = a.dy.shape().rows();
  if (rows == 0 || cols == 0) return;
  const auto scale = static_cast<float>(a.scale);
  with_cuda_type(a.dy.dtype(), "rmsnorm_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *dy = a.dy.as<T>(), *saved = a.saved.as<T>();
    const T* weight = a.weight.empty() ? nullptr : a.weight.as<T>();
    const float* rstd = a.rstd.as<float>();
    if (!a.dweight.empty()) {  // before dx, which may lie in dy's place
      float* partial = reinterpret_cast<float*>(exec.scratch.data());
      const dim3 grid(grid_for(cols, kThreads), static_cast<unsigned>(kRmsnormBlocks));
      dweight_partial<T>
          <<<grid, kThreads, 0, cuda_stream(exec)>>>(dy, saved, rstd, partial, rows, cols, scale);
      float* dweight = a.dweight.as<float>();
      dweight_sum<<<grid_for(cols, kThreads), kThreads, 0, cuda_stream(exec)>>>(partial, dweight,
                                                                                cols);
    }
    if (cols < kWideRow) {
      bwd_warps<T><<<grid_for(rows, kWarps), kThreads, 0, cuda_stream(exec)>>>(
          dy, saved, rstd, weight, a.dx.as<T>(), rows, cols, scale);
    } else {
      bwd_blocks<T><<<grid_for(rows, 1), kThreads, 0, cuda_stream(exec)>>>(
          dy, saved, rstd, weight, a.dx.as<T>(), cols, scale);
    }
  });
  cuda::check_launch("rmsnorm_bwd");
}

}  // namespace tightloop
