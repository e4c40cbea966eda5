#include <algorithm>

#include "tightloop/ops/common/cuda_row_shape.cuh"
#include "tightloop/ops/rmsnorm/rmsnorm_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = kRowShapeThreads;
constexpr int kSumThreads = 1024;

template <typename T>
struct Fwd {
  const T *x, *weight;  // weight may be null
  T* y;
  float* rstd;
  int64_t rows, cols;
  float eps, scale;
};

template <typename T>
struct Bwd {
  const T *dy, *saved, *weight;  // weight null: saved is y, else x
  const float* rstd;
  T* dx;
  float* partial;  // of the weight's gradient, a row a block
  int64_t rows, cols, rows_of_block;
  float scale;
};

/// y may be x: a lane reads its elements before it writes them.
template <typename T, int N, int Lanes, int Packs>
__global__ void __launch_bounds__(kThreads) fwd_kernel(Fwd<T> q) {
  const int64_t row = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / Lanes;
  if (row >= q.rows) return;
  const T* x = q.x + row * q.cols;
  T* y = q.y + row * q.cols;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  constexpr int64_t kStep = Lanes * N;
  constexpr int kKept = Packs == 0 ? 1 : Packs;

  Stored<T, N> kept[kKept];
  float squares = 0.0f;
  const auto add_squares = [&](const Stored<T, N>& of) {
#pragma unroll
    for (int j = 0; j < N; ++j) squares += of.at(j) * of.at(j);
  };
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < q.cols) kept[k].load(x + begin + k * kStep);
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < q.cols) add_squares(kept[k]);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      kept[0].load(x + c);
      add_squares(kept[0]);
    }
  }
  const float rstd = 1.0f / sqrtf(row_sum<Lanes>(squares) / static_cast<float>(q.cols) + q.eps);
  if (begin == 0) q.rstd[row] = rstd;
  const float factor = q.scale * rstd;
  const auto put = [&](const Stored<T, N>& of, int64_t c) {
    float v[N], w[N];
    if (q.weight != nullptr) load_floats(q.weight + c, w);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = factor * of.at(j) * (q.weight == nullptr ? 1.0f : w[j]);
    store_floats(y + c, v);
  };
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < q.cols) put(kept[k], begin + k * kStep);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      kept[0].load(x + c);
      put(kept[0], c);
    }
  }
}

/// to[c] = scale * the sum over the block's warps of their columns, N neighbours a lane, as far as
/// there are columns. All threads must call it.
template <int N>
__device__ void store_sums_of_warps(const float (&mine)[N], float* to, int64_t cols, float scale) {
  constexpr int kWarps = kThreads / kWarp, kWidth = kWarp * N;
  __shared__ float sums[kWarps][kWidth];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < N; ++j) sums[threadIdx.x / kWarp][lane * N + j] = mine[j];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < kWidth && c < cols; c += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][c];
    to[c] = scale * sum;
  }
  __syncthreads();  // before sums is written again
}

/// Rows in order, those of a block by its warps in turn or by all of it. dx may be dy. With Dweight
/// also the block's part of the weight's gradient.
template <typename T, int N, int Lanes, int Packs, bool Dweight>
__global__ void __launch_bounds__(kThreads) bwd_kernel(Bwd<T> q) {
  constexpr int64_t kStep = Lanes * N;
  constexpr int kKept = Packs == 0 ? 1 : Packs;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  const int64_t first_row = blockIdx.x * q.rows_of_block;
  const int64_t end_row = min(first_row + q.rows_of_block, q.rows);
  float* partial = Dweight ? q.partial + blockIdx.x * q.cols : nullptr;
  float sums[kKept][N] = {};  // of dy * xhat, for Dweight

  /// What a lane keeps of a row.
  struct Kept {
    Stored<T, N> g[kKept], s[kKept];
    float rstd;
  };
  const auto load = [&](Kept& of, int64_t row) {
    of.rstd = q.rstd[row];
    if constexpr (Packs > 0) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        const int64_t c = begin + k * kStep;
        if (c < q.cols)
          of.g[k].load(q.dy + row * q.cols + c), of.s[k].load(q.saved + row * q.cols + c);
      }
    }
  };
  constexpr int64_t kAtOnce = kThreads / Lanes;
  Kept now,
      next;  // with Dweight a warp or block has many rows: the next comes while this is worked on
  int64_t row = first_row + threadIdx.x / Lanes;
  if (Dweight && row < end_row) load(now, row);
  for (; row < end_row; row += kAtOnce) {
    if constexpr (!Dweight) {
      load(now, row);
    } else if (row + kAtOnce < end_row) {
      load(next, row + kAtOnce);
    }
    const T *dy = q.dy + row * q.cols, *saved = q.saved + row * q.cols;
    T* dx = q.dx + row * q.cols;
    auto &g = now.g, &s = now.s;
    const float rstd = now.rstd;
    float dot = 0.0f;
    const auto weight_at = [&](int64_t c, float(&w)[N]) {
      if (q.weight != nullptr) {
        load_floats(q.weight + c, w);
      } else {
#pragma unroll
        for (float& v : w) v = 1.0f;
      }
    };
    const auto add_dot = [&](int k, int64_t c) {
      float w[N];
      weight_at(c, w);
#pragma unroll
      for (int j = 0; j < N; ++j) dot += g[k].at(j) * w[j] * s[k].at(j);
    };
    if constexpr (Packs > 0) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        if (begin + k * kStep < q.cols) add_dot(k, begin + k * kStep);
      }
    } else {
      for (int64_t c = begin; c < q.cols; c += kStep) {
        g[0].load(dy + c), s[0].load(saved + c);
        add_dot(0, c);
      }
    }
    const float mean = row_sum<Lanes>(dot) / static_cast<float>(q.cols);
    // saved is x = xhat / rstd, or y = scale * xhat.
    const float a = rstd * q.scale;
    const float b = q.weight == nullptr ? rstd / q.scale * mean : a * rstd * rstd * mean;
    const auto put = [&](int k, int64_t c) {
      float w[N], v[N];
      weight_at(c, w);
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = a * g[k].at(j) * w[j] - b * s[k].at(j);
      store_floats(dx + c, v);
      if constexpr (Dweight) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float part = g[k].at(j) * s[k].at(j) * rstd;
          if constexpr (Packs > 0) {
            sums[k][j] += part;
          } else {
            partial[c + j] = (row == first_row ? 0.0f : partial[c + j]) + q.scale * part;
          }
        }
      }
    };
    if constexpr (Packs > 0) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        if (begin + k * kStep < q.cols) put(k, begin + k * kStep);
      }
    } else {
      for (int64_t c = begin; c < q.cols; c += kStep) {
        g[0].load(dy + c), s[0].load(saved + c);
        put(0, c);
      }
    }
    if constexpr (Dweight) now = next;
  }
  if constexpr (Dweight && Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if constexpr (Lanes == kWarp) {
        if (k * kStep < q.cols)
          store_sums_of_warps<N>(sums[k], partial + k * kStep, q.cols - k * kStep, q.scale);
      } else {
        const int64_t c = begin + k * kStep;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (c < q.cols) partial[c + j] = q.scale * sums[k][j];
        }
      }
    }
  }
}

/// dweight[c] += the sum of all parts of column c, at most kRmsnormCudaBlocks: a warp's lanes take
/// neighbouring columns, its warps every kWarps-th part, all of them on their way at once.
__global__ void __launch_bounds__(kSumThreads)
    sum_parts(const float* partial, float* dweight, int64_t parts, int64_t cols) {
  constexpr int kWarps = kSumThreads / kWarp;
  constexpr int kTimes = (kRmsnormCudaBlocks + kWarps - 1) / kWarps;
  __shared__ float sums[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t c = blockIdx.x * static_cast<int64_t>(kWarp) + lane;
  float parts_of_warp[kTimes];
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    const int64_t part = warp + time * kWarps;
    parts_of_warp[time] = c < cols && part < parts ? partial[part * cols + c] : 0.0f;
  }
  float sum = 0.0f;
#pragma unroll
  for (const float part : parts_of_warp) sum += part;
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= cols) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  dweight[c] += total;
}

}  // namespace

void rmsnorm_fwd_cuda(const Exec& exec, const RmsnormFwd& a) {
  const int64_t cols = a.x.shape().cols(), rows = a.x.shape().rows();
  if (rows == 0 || cols == 0) return;
  with_cuda_type(a.x.dtype(), "rmsnorm", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Fwd<T> q{.x = a.x.as<T>(),
                   .weight = a.weight.empty() ? nullptr : a.weight.as<T>(),
                   .y = a.y.as<T>(),
                   .rstd = a.rstd.as<float>(),
                   .rows = rows,
                   .cols = cols,
                   .eps = static_cast<float>(a.eps),
                   .scale = static_cast<float>(a.scale)};
    const bool packs = rows_of_16_bytes<T>(cols, {q.x, q.weight, q.y});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      constexpr int kLanes = decltype(lanes)::value;
      fwd_kernel<T, decltype(n)::value, kLanes, decltype(kept)::value>
          <<<grid_for(rows, kThreads / kLanes), kThreads, 0, cuda_stream(exec)>>>(q);
    });
  });
  cuda::check_launch("rmsnorm");
}

void rmsnorm_bwd_cuda(const Exec& exec, const RmsnormBwd& a) {
  const int64_t cols = a.dy.shape().cols(), rows = a.dy.shape().rows();
  if (rows == 0 || cols == 0) return;
  const bool wants_dweight = !a.dweight.empty();
  with_cuda_type(a.dy.dtype(), "rmsnorm_bwd", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Bwd<T> q{.dy = a.dy.as<T>(),
             .saved = a.saved.as<T>(),
             .weight = a.weight.empty() ? nullptr : a.weight.as<T>(),
             .rstd = a.rstd.as<float>(),
             .dx = a.dx.as<T>(),
             .partial = reinterpret_cast<float*>(exec.scratch.data()),
             .rows = rows,
             .cols = cols,
             .rows_of_block = 0,
             .scale = static_cast<float>(a.scale)};
    const bool packs = rows_of_16_bytes<T>(cols, {q.dy, q.saved, q.weight, q.dx});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      constexpr int kN = decltype(n)::value, kLanes = decltype(lanes)::value;
      constexpr int kPacks = decltype(kept)::value;
      constexpr int64_t kAtOnce = kThreads / kLanes;
      // With dweight no more blocks than the 132 processors of an H200 take at once.
      constexpr int64_t kBlocks = 132 * (kLanes == kWarp ? 2 : 3);
      static_assert(kBlocks <= kRmsnormCudaBlocks);
      q.rows_of_block = wants_dweight ? std::max(kAtOnce, (rows + kBlocks - 1) / kBlocks) : kAtOnce;
      const unsigned blocks = grid_for(rows, q.rows_of_block);
      const auto kernel = wants_dweight ? bwd_kernel<T, kN, kLanes, kPacks, true>
                                        : bwd_kernel<T, kN, kLanes, kPacks, false>;
      kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(q);
      if (wants_dweight)
        sum_parts<<<grid_for(cols, kWarp), kSumThreads, 0, cuda_stream(exec)>>>(
            q.partial, a.dweight.as<float>(), blocks, cols);
    });
  });
  cuda::check_launch("rmsnorm_bwd");
}

}  // namespace tightloop
