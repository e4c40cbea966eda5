#include "tightloop/ops/common/cuda_lanes.cuh"
#include "tightloop/ops/smear/smear_kernels.h"

// A warp a token, N neighbours a lane where rows allow it.
namespace tightloop {
namespace {

constexpr int kWarps = kLaneThreads / kWarp;
constexpr int kPacks = 4;  // of a row that a lane keeps

/// sigmoid(w . x) in every lane.
template <typename T, typename W>
__device__ float gate_of(const T* x, const W* w, int64_t m, int lane) {
  float sum = 0.0f;
  for (int64_t c = lane; c < m; c += kWarp) sum += load_as_float(x + c) * load_as_float(w + c);
  return 1.0f / (1.0f + expf(-warp_sum(sum)));
}

/// `prev` (B, C) precedes the first token of each sequence; null for none, and unless *pos > 0.
/// A lane loads its packs of a row before anything waits where there are at most Packs; 0: more.
template <typename T, typename W, int N, int Packs>
__global__ void __launch_bounds__(kLaneThreads) fwd_rows(const T* x,
                                                         const W* w,
                                                         const float* lambda,
                                                         const T* prev,
                                                         const int32_t* pos,
                                                         T* y,
                                                         int64_t rows,
                                                         int64_t tokens,
                                                         int64_t cols,
                                                         int64_t m) {
  constexpr int kKept = Packs == 0 ? 1 : Packs, kStep = kWarp * N;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* before = x + (row - 1) * cols;
  if (row % tokens == 0)
    before = prev == nullptr || *pos <= 0 ? nullptr : prev + row / tokens * cols;
  x += row * cols, y += row * cols;
  const int64_t begin = lane * N;
  Stored<T, N> a[kKept], b[kKept]{};
  const auto load = [&](int k, int64_t c) {
    a[k].load(x + c);
    if (before != nullptr) b[k].load(before + c);
  };
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < cols) load(k, begin + k * kStep);
    }
  }
  const float gate = before == nullptr ? 0.0f : *lambda * gate_of(x, w, m, lane);
  const auto put = [&](int k, int64_t c) {
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = a[k].at(i) + gate * b[k].at(i);
    store_floats(y + c, sum);
  };
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < cols) put(k, begin + k * kStep);
    }
  } else {
    for (int64_t c = begin; c < cols; c += kStep) load(0, c), put(0, c);
  }
}

/// Row t also leaves what the parameters' gradients need of it: q and s * p.
template <typename T, typename W, int N, int Packs>
__global__ void __launch_bounds__(kLaneThreads) bwd_rows(const T* dy,
                                                         const T* x,
                                                         const W* w,
                                                         const float* lambda,
                                                         T* dx,
                                                         float2* terms,
                                                         int64_t rows,
                                                         int64_t tokens,
                                                         int64_t cols,
                                                         int64_t m) {
  constexpr int kKept = Packs == 0 ? 1 : Packs, kStep = kWarp * N;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t t = row % tokens;
  const bool first = t == 0, last = t + 1 == tokens;
  dy += row * cols, x += row * cols, dx += row * cols;
  const int64_t begin = lane * N;
  Stored<T, N> own[kKept], next[kKept]{}, before[kKept]{};  // dy, dy of the next row, x before
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c >= cols) continue;
      own[k].load(dy + c);
      if (!last) next[k].load(dy + cols + c);
      if (!first) before[k].load(x - cols + c);
    }
  }
  const float gate = last ? 0.0f : *lambda * gate_of(x + cols, w, m, lane);
  float q = 0.0f, sp = 0.0f;
  if (!first) {
    const float s = gate_of(x, w, m, lane);
    float p = 0.0f;
    const auto add = [&](int k) {
#pragma unroll
      for (int i = 0; i < N; ++i) p += own[k].at(i) * before[k].at(i);
    };
    if constexpr (Packs > 0) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        if (begin + k * kStep < cols) add(k);
      }
    } else {
      for (int64_t c = begin; c < cols; c += kStep) {
        own[0].load(dy + c), before[0].load(x - cols + c);
        add(0);
      }
    }
    p = warp_sum(p);
    q = *lambda * s * (1.0f - s) * p, sp = s * p;
  }
  const auto put = [&](int k, int64_t c) {
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[i] = own[k].at(i) + gate * next[k].at(i);
      if (c + i < m) sum[i] += q * load_as_float(w + c + i);
    }
    store_floats(dx + c, sum);
  };
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < cols) put(k, begin + k * kStep);
    }
  } else {
    for (int64_t c = begin; c < cols; c += kStep) {
      own[0].load(dy + c);
      if (!last) next[0].load(dy + cols + c);
      put(0, c);
    }
  }
  if (terms != nullptr && lane == 0) terms[row] = {q, sp};
}

/// partial[block] (m + 1): the sums over the block's rows for dw and, last, dlambda. Warp k takes
/// every kWarps-th row from the k-th on.
template <typename T>
__global__ void __launch_bounds__(kLaneThreads) sum_partial(
    const T* x, const float2* terms, double* partial, int64_t rows, int64_t cols, int64_t m) {
  __shared__ double sums[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t block = blockIdx.x;
  const int64_t begin = block * rows / kSmearBlocks, end = (block + 1) * rows / kSmearBlocks;
  for (int64_t first = 0; first <= m; first += kWarp) {
    const int64_t c = first + lane;
    double sum = 0.0;
    for (int64_t r = begin + warp; r < end; r += kWarps) {
      if (c < m) sum += static_cast<double>(terms[r].x * load_as_float(x + r * cols + c));
      if (c == m) sum += static_cast<double>(terms[r].y);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c <= m) {
      double total = 0.0;
      for (int k = 0; k < kWarps; ++k) total += sums[k][lane];
      partial[block * (m + 1) + c] = total;
    }
    __syncthreads();  // before sums is written again
  }
}

/// Either gradient may be null.
__global__ void __launch_bounds__(kLaneThreads)
    sum_blocks(const double* partial, float* dw, float* dlambda, int64_t m) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(kLaneThreads) + threadIdx.x;
  if (c > m) return;
  double total = 0.0;
  for (int64_t block = 0; block < kSmearBlocks; ++block) total += partial[block * (m + 1) + c];
  if (c < m && dw != nullptr) dw[c] += static_cast<float>(total);
  if (c == m && dlambda != nullptr) *dlambda += static_cast<float>(total);
}

template <typename T>
__global__ void __launch_bounds__(kLaneThreads)
    keep_last(const T* x, T* prev, int64_t n, int64_t tokens, int64_t cols) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kLaneThreads) + threadIdx.x;
  if (i < n) prev[i] = x[((i / cols + 1) * tokens - 1) * cols + i % cols];
}

template <typename T, typename W, int N>
void launch_fwd(const Exec& exec, const SmearFwd& a, const T* prev, const int32_t* pos) {
  const int64_t tokens = a.x.shape()[1], cols = a.x.shape()[2], rows = a.x.shape().rows();
  const auto kernel = cols <= kWarp * N * kPacks ? fwd_rows<T, W, N, kPacks> : fwd_rows<T, W, N, 0>;
  kernel<<<grid_for(rows, kWarps), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.x.as<T>(), a.w.as<W>(), a.lambda.as<float>(), prev, pos, a.y.as<T>(), rows, tokens, cols,
      a.w.elems());
}

template <typename T, typename W, int N>
void launch_bwd(const Exec& exec, const SmearBwd& a, float2* terms) {
  const int64_t tokens = a.x.shape()[1], cols = a.x.shape()[2], rows = a.x.shape().rows();
  const auto kernel = cols <= kWarp * N * kPacks ? bwd_rows<T, W, N, kPacks> : bwd_rows<T, W, N, 0>;
  kernel<<<grid_for(rows, kWarps), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.dy.as<T>(), a.x.as<T>(), a.w.as<W>(), a.lambda.as<float>(), a.dx.as<T>(), terms, rows,
      tokens, cols, a.w.elems());
}

template <typename T>
void launch_sums(const Exec& exec, const SmearBwd& a, const float2* terms, double* partial) {
  const int64_t cols = a.x.shape()[2], rows = a.x.shape().rows(), m = a.w.elems();
  sum_partial<T><<<static_cast<unsigned>(kSmearBlocks), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.x.as<T>(), terms, partial, rows, cols, m);
  float* dw = a.dw.empty() ? nullptr : a.dw.as<float>();
  float* dlambda = a.dlambda.empty() ? nullptr : a.dlambda.as<float>();
  sum_blocks<<<grid_for(m + 1, kLaneThreads), kLaneThreads, 0, cuda_stream(exec)>>>(partial, dw,
                                                                                    dlambda, m);
}

/// fn(T*, W*) with the types of the activations and of the gate's weights.
template <typename Fn>
void with_types(const char* op, DType x, DType w, Fn&& fn) {
  with_cuda_type(x, op, [&](auto* t) { with_cuda_type(w, op, [&](auto* u) { fn(t, u); }); });
}

}  // namespace

void smear_fwd_cuda(const Exec& exec,
                    const SmearFwd& a,
                    const ConstTensorView& prev,
                    const ConstTensorView& pos) {
  with_types("smear", a.x.dtype(), a.w.dtype(), [&](auto* t, auto* u) {
    using T = std::remove_pointer_t<decltype(t)>;
    using W = std::remove_pointer_t<decltype(u)>;
    const T* before = prev.empty() ? nullptr : prev.as<T>();
    const int32_t* at = pos.empty() ? nullptr : pos.as<int32_t>();
    rows_of_16_bytes<T>(a.x.shape()[2], {a.x.data, a.y.data, before})
        ? launch_fwd<T, W, kElementsOf16Bytes<T>>(exec, a, before, at)
        : launch_fwd<T, W, 1>(exec, a, before, at);
  });
  cuda::check_launch("smear");
}

void smear_bwd_cuda(const Exec& exec, const SmearBwd& a) {
  const bool wants_sums = !a.dw.empty() || !a.dlambda.empty();
  auto* partial = reinterpret_cast<double*>(exec.scratch.data());
  auto* terms = reinterpret_cast<float2*>(partial + kSmearBlocks * (a.w.elems() + 1));
  with_types("smear_bwd", a.x.dtype(), a.w.dtype(), [&](auto* t, auto* u) {
    using T = std::remove_pointer_t<decltype(t)>;
    using W = std::remove_pointer_t<decltype(u)>;
    float2* kept = wants_sums ? terms : nullptr;
    rows_of_16_bytes<T>(a.x.shape()[2], {a.dy.data, a.x.data, a.dx.data})
        ? launch_bwd<T, W, kElementsOf16Bytes<T>>(exec, a, kept)
        : launch_bwd<T, W, 1>(exec, a, kept);
    if (wants_sums) launch_sums<T>(exec, a, terms, partial);
  });
  cuda::check_launch("smear_bwd");
}

void smear_cached_cuda(const Exec& exec, const SmearCached& a) {
  smear_fwd_cuda(exec, {.x = a.x, .w = a.w, .lambda = a.lambda, .y = a.y}, a.prev, a.pos);
  const int64_t n = a.prev.elems(), tokens = a.x.shape()[1], cols = a.x.shape()[2];
  with_cuda_type(a.x.dtype(), "smear_cached", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    keep_last<T><<<grid_for(n, kLaneThreads), kLaneThreads, 0, cuda_stream(exec)>>>(
        a.x.as<T>(), a.prev.as<T>(), n, tokens, cols);
  });
  cuda::check_launch("smear_cached");
}

}  // namespace tightloop
