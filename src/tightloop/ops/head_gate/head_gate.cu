#include <algorithm>

#include "tightloop/ops/common/cuda_lanes.cuh"
#include "tightloop/ops/head_gate/head_gate_kernels.h"

namespace tightloop {
namespace {

/// A thread a gate.
template <typename T, typename W>
__global__ void __launch_bounds__(kLaneThreads) gate_kernel(const T* h,
                                                            const W* w,
                                                            float* g,
                                                            int64_t gates,
                                                            int64_t cols,
                                                            int64_t heads,
                                                            int64_t m,
                                                            float kappa) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kLaneThreads) + threadIdx.x;
  if (i >= gates) return;
  h += i / heads * cols, w += i % heads * m;
  float sum = 0.0f;
  for (int64_t c = 0; c < m; ++c) sum += load_as_float(h + c) * load_as_float(w + c);
  g[i] = kappa / (1.0f + expf(-sum));
}

/// `inverse` of kappa: a division would keep loads from being moved before it.
__device__ float score_grad(float dg, float g, float inverse) {
  return dg * g * (1.0f - g * inverse);
}

/// Adds to the first m columns of dh, a thread an element.
template <typename T, typename W>
__global__ void __launch_bounds__(kLaneThreads) dh_kernel(const float* dg,
                                                          const float* g,
                                                          const W* w,
                                                          T* dh,
                                                          int64_t rows,
                                                          int64_t cols,
                                                          int64_t heads,
                                                          int64_t m,
                                                          float inverse) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kLaneThreads) + threadIdx.x;
  if (i >= rows * m) return;
  const int64_t row = i / m, c = i % m, at = row * cols + c;
  float sum = load_as_float(dh + at);
  for (int64_t j = row * heads; j < (row + 1) * heads; ++j)
    sum += score_grad(dg[j], g[j], inverse) * load_as_float(w + (j - row * heads) * m + c);
  store_float(dh + at, sum);
}

/// partial[block] (heads, m): the block's rows in order, a thread a weight.
template <typename T>
__global__ void __launch_bounds__(kLaneThreads) dw_partial(const float* dg,
                                                           const float* g,
                                                           const T* h,
                                                           float* partial,
                                                           int64_t rows,
                                                           int64_t cols,
                                                           int64_t heads,
                                                           int64_t m,
                                                           float inverse) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= heads * m) return;
  const int64_t block = blockIdx.y, j = i / m, c = i % m;
  float sum = 0.0f;
#pragma unroll 16
  for (int64_t r = block * rows / kHeadGateCudaBlocks; r < (block + 1) * rows / kHeadGateCudaBlocks;
       ++r)
    sum +=
        score_grad(dg[r * heads + j], g[r * heads + j], inverse) * load_as_float(h + r * cols + c);
  partial[block * heads * m + i] = sum;
}

/// A block a weight.
__global__ void __launch_bounds__(kLaneThreads)
    dw_sum(const float* partial, float* dw, int64_t weights) {
  const int64_t i = blockIdx.x;
  float sum = 0.0f;
  for (int64_t block = threadIdx.x; block < kHeadGateCudaBlocks; block += kLaneThreads)
    sum += partial[block * weights + i];
  sum = block_sum<kLaneThreads>(sum);
  if (threadIdx.x == 0) dw[i] += sum;
}

/// Rows are heads.
template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads)
    add_rows(const T* v, const float* g, const T* u, T* y, int64_t rows, int64_t width, int lanes) {
  const RowLane at(lanes);
  if (at.row >= rows) return;
  const float gate = g[at.row];
  for (int64_t c = at.row * width + at.lane * N; c < (at.row + 1) * width; c += lanes * N) {
    float a[N], b[N];
    load_floats(v + c, a), load_floats(u + c, b);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] += gate * b[i];
    store_floats(y + c, a);
  }
}

/// du may be dy or u: each lane reads what it writes, and the sum is complete before.
template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads) add_bwd_rows(const T* dy,
                                                             const float* g,
                                                             const T* u,
                                                             float* dg,
                                                             T* du,
                                                             int64_t rows,
                                                             int64_t width,
                                                             int lanes) {
  const RowLane at(lanes);
  const bool present = at.row < rows;
  const int64_t begin = at.row * width + at.lane * N, end = (at.row + 1) * width;
  float sum = 0.0f;
  Stored<T, N> kept;  // the first elements of dy, which are all in short rows
  for (int64_t c = begin; present && c < end; c += lanes * N) {
    Stored<T, N> a, b;
    a.load(dy + c), b.load(u + c);
    if (c == begin) kept = a;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += a.at(i) * b.at(i);
  }
  sum = group_sum(sum, lanes);
  if (!present) return;
  if (at.lane == 0) dg[at.row] = sum;
  const float gate = g[at.row];
  for (int64_t c = begin; c < end; c += lanes * N) {
    if (c > begin) kept.load(dy + c);
    float a[N];
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] = gate * kept.at(i);
    store_floats(du + c, a);
  }
}

template <typename T, typename W>
void launch_gate(const Exec& exec, const HeadGateFwd& a) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  const int64_t gates = a.g.elems();
  gate_kernel<T, W><<<grid_for(gates, kLaneThreads), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.h.as<T>(), a.w.as<W>(), a.g.as<float>(), gates, cols, heads, m,
      static_cast<float>(a.kappa));
}

template <typename T, typename W>
void launch_gate_bwd(const Exec& exec, const HeadGateBwd& a) {
  const int64_t cols = a.h.shape().cols(), heads = a.w.shape()[0], m = a.w.shape()[1];
  const int64_t rows = a.h.shape().rows(), weights = heads * m;
  const float *dg = a.dg.as<float>(), *g = a.g.as<float>(),
              inverse = 1.0f / static_cast<float>(a.kappa);
  if (!a.dw.empty()) {
    float* partial = reinterpret_cast<float*>(exec.scratch.data());
    const int64_t threads = std::min<int64_t>(kLaneThreads, (weights + kWarp - 1) / kWarp * kWarp);
    const dim3 blocks(grid_for(weights, threads), kHeadGateCudaBlocks);
    dw_partial<T><<<blocks, static_cast<unsigned>(threads), 0, cuda_stream(exec)>>>(
        dg, g, a.h.as<T>(), partial, rows, cols, heads, m, inverse);
    dw_sum<<<grid_for(weights, 1), kLaneThreads, 0, cuda_stream(exec)>>>(partial, a.dw.as<float>(),
                                                                         weights);
  }
  const auto bytes = static_cast<size_t>(a.dh.bytes());
  if (a.dh_in.empty())
    cudaMemsetAsync(a.dh.data, 0, bytes, cuda_stream(exec));
  else if (a.dh_in.data != a.dh.data)
    cudaMemcpyAsync(a.dh.data, a.dh_in.data, bytes, cudaMemcpyDeviceToDevice, cuda_stream(exec));
  dh_kernel<T, W><<<grid_for(rows * m, kLaneThreads), kLaneThreads, 0, cuda_stream(exec)>>>(
      dg, g, a.w.as<W>(), a.dh.as<T>(), rows, cols, heads, m, inverse);
}

template <typename T, int N>
void launch_add(const Exec& exec, const GatedAddFwd& a) {
  const int64_t width = a.v.shape().cols(), rows = a.v.shape().rows();
  const int lanes = lanes_for(width / N);
  add_rows<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.v.as<T>(), a.g.as<float>(), a.u.as<T>(), a.y.as<T>(), rows, width, lanes);
}

template <typename T, int N>
void launch_add_bwd(const Exec& exec, const GatedAddBwd& a) {
  const int64_t width = a.dy.shape().cols(), rows = a.dy.shape().rows();
  const int lanes = lanes_for(width / N);
  add_bwd_rows<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.dy.as<T>(), a.g.as<float>(), a.u.as<T>(), a.dg.as<float>(), a.du.as<T>(), rows, width,
      lanes);
}

}  // namespace

void head_gate_fwd_cuda(const Exec& exec, const HeadGateFwd& a) {
  if (a.g.elems() == 0) return;
  with_cuda_type(a.h.dtype(), "head_gate", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    with_cuda_type(a.w.dtype(), "head_gate",
                   [&](auto* w) { launch_gate<T, std::remove_pointer_t<decltype(w)>>(exec, a); });
  });
  cuda::check_launch("head_gate");
}

void head_gate_bwd_cuda(const Exec& exec, const HeadGateBwd& a) {
  if (a.h.elems() == 0 || a.w.elems() == 0) return;
  with_cuda_type(a.h.dtype(), "head_gate_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    with_cuda_type(a.w.dtype(), "head_gate_bwd", [&](auto* w) {
      launch_gate_bwd<T, std::remove_pointer_t<decltype(w)>>(exec, a);
    });
  });
  cuda::check_launch("head_gate_bwd");
}

void gated_add_fwd_cuda(const Exec& exec, const GatedAddFwd& a) {
  if (a.v.elems() == 0) return;
  with_cuda_type(a.v.dtype(), "gated_add", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rows_of_16_bytes<T>(a.v.shape().cols(), {a.v.data, a.u.data, a.y.data})
        ? launch_add<T, kElementsOf16Bytes<T>>(exec, a)
        : launch_add<T, 1>(exec, a);
  });
  cuda::check_launch("gated_add");
}

void gated_add_bwd_cuda(const Exec& exec, const GatedAddBwd& a) {
  if (a.dy.elems() == 0) return;
  with_cuda_type(a.dy.dtype(), "gated_add_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rows_of_16_bytes<T>(a.dy.shape().cols(), {a.dy.data, a.u.data, a.du.data})
        ? launch_add_bwd<T, kElementsOf16Bytes<T>>(exec, a)
        : launch_add_bwd<T, 1>(exec, a);
  });
  cuda::check_launch("gated_add_bwd");
}

}  // namespace tightloop
