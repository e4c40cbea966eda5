#include "tightloop/ops/common/cuda_pack.cuh"
#include "tightloop/ops/common/scaled_term.cuh"
#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kKept = 4;  // packs of a row a thread keeps in registers between its two passes

template <typename T>
struct Fwd {
  const T *x, *y, *z;  // y and z may be null
  T *s, *t, *h;        // s and t may be null
  float* rstd;
  CudaFactor a, b;
  int64_t rows, cols;
  float eps, scale;
};

template <typename T>
struct Bwd {
  const T *dh, *h, *dt_in, *s, *z, *dz_in;  // all but dh and h may be null
  const float* rstd;
  T *ds, *dz;            // dz may be null
  float *sum_s, *sum_z;  // one a row
  CudaFactor a, b;
  int64_t rows, cols;
  float scale;
};

/// A row is taken by Lanes threads: a warp or a block. All of them get the sum.
template <int Lanes>
__device__ float row_sum(float x) {
  if constexpr (Lanes == kWarp) {
    return warp_sum(x);
  } else {
    return block_sum<Lanes>(x);
  }
}
template <int Lanes>
__device__ int64_t row_of_thread() {
  return (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / Lanes;
}

/// Stores s and t of N elements from i on, where they are asked for, and returns t as it is stored.
template <int N, typename T>
__device__ void add_terms(const Fwd<T>& q, int64_t i, float fa, float fb, float (&t)[N]) {
  float other[N];
  load_floats<N>(q.x + i, t);
  if (q.y != nullptr) {
    load_floats<N>(q.y + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) t[j] = as_stored<T>(t[j] + other[j]);
    if (q.s != nullptr) store_floats<N>(q.s + i, t);
  }
  if (q.z != nullptr) {
    load_floats<N>(q.z + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) t[j] = as_stored<T>(fa * t[j] + fb * other[j]);
  }
  if (q.t != nullptr) store_floats<N>(q.t + i, t);
}

template <int N>
__device__ float squares_of(const float (&t)[N]) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) sum += t[j] * t[j];
  return sum;
}

template <int N, typename T>
__device__ void store_scaled(T* h, float (&t)[N], float factor) {
#pragma unroll
  for (int j = 0; j < N; ++j) t[j] *= factor;
  store_floats<N>(h, t);
}

/// Kept: the row has at most kKept packs a lane. Else what was stored is read again.
template <typename T, int N, int Lanes, bool Kept>
__global__ void __launch_bounds__(kThreads) fwd_kernel(Fwd<T> q) {
  const int64_t row = row_of_thread<Lanes>();
  if (row >= q.rows) return;
  const int64_t first = row * q.cols;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  constexpr int64_t kStep = Lanes * N;
  const float fa = q.a.value(), fb = q.b.value();

  float kept[kKept][N], squares = 0.0f;
  if constexpr (Kept) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c >= q.cols) continue;
      add_terms<N>(q, first + c, fa, fb, kept[k]);
      squares += squares_of(kept[k]);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      add_terms<N>(q, first + c, fa, fb, kept[0]);
      squares += squares_of(kept[0]);
    }
  }
  const float mean = row_sum<Lanes>(squares) / static_cast<float>(q.cols);
  const float rstd = 1.0f / sqrtf(mean + q.eps), factor = rstd * q.scale;
  if (begin == 0) q.rstd[row] = rstd;
  if constexpr (Kept) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c < q.cols) store_scaled<N>(q.h + first + c, kept[k], factor);
    }
  } else {
    const T* t = q.t == nullptr ? q.x : q.t;  // each thread reads what it wrote itself
    for (int64_t c = begin; c < q.cols; c += kStep) {
      load_floats<N>(t + first + c, kept[0]);
      store_scaled<N>(q.h + first + c, kept[0], factor);
    }
  }
}

template <int N>
__device__ float dot_of(const float (&x)[N], const float (&y)[N]) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) sum += x[j] * y[j];
  return sum;
}

/// ds and dz of N elements from i on, dt being a * dh - b * h (+ dt_in); adds to the two sums.
/// dh and h are overwritten.
template <int N, typename T>
__device__ void store_gradients(const Bwd<T>& q,
                                int64_t i,
                                float (&dh)[N],
                                float (&h)[N],
                                float a,
                                float b,
                                float fa,
                                float fb,
                                float& sum_s,
                                float& sum_z) {
  float other[N];
#pragma unroll
  for (int j = 0; j < N; ++j) dh[j] = a * dh[j] - b * h[j];
  if (q.dt_in != nullptr) {
    load_floats<N>(q.dt_in + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) dh[j] += other[j];
  }
  if (q.dz == nullptr) return store_floats<N>(q.ds + i, dh);
  if (q.s != nullptr) {
    load_floats<N>(q.s + i, other);
    sum_s += dot_of(dh, other);
  }
  if (q.z != nullptr) {
    load_floats<N>(q.z + i, other);
    sum_z += dot_of(dh, other);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) h[j] = fb * dh[j], dh[j] *= fa;
  if (q.dz_in != nullptr) {
    load_floats<N>(q.dz_in + i, other);
#pragma unroll
    for (int j = 0; j < N; ++j) h[j] += other[j];
  }
  store_floats<N>(q.dz + i, h);
  store_floats<N>(q.ds + i, dh);
}

template <typename T, int N, int Lanes, bool Kept>
__global__ void __launch_bounds__(kThreads) bwd_kernel(Bwd<T> q) {
  const int64_t row = row_of_thread<Lanes>();
  if (row >= q.rows) return;
  const int64_t first = row * q.cols;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  constexpr int64_t kStep = Lanes * N;
  const float fa = q.a.value(), fb = q.b.value(), rstd = q.rstd[row];

  float dh[kKept][N], h[kKept][N], dot = 0.0f;
  if constexpr (Kept) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c >= q.cols) continue;
      load_floats<N>(q.dh + first + c, dh[k]);
      load_floats<N>(q.h + first + c, h[k]);
      dot += dot_of(dh[k], h[k]);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      load_floats<N>(q.dh + first + c, dh[0]);
      load_floats<N>(q.h + first + c, h[0]);
      dot += dot_of(dh[0], h[0]);
    }
  }
  const float mean = row_sum<Lanes>(dot) / static_cast<float>(q.cols);
  const float a = rstd * q.scale, b = rstd * mean / q.scale;
  float sum_s = 0.0f, sum_z = 0.0f;
  if constexpr (Kept) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c < q.cols) store_gradients<N>(q, first + c, dh[k], h[k], a, b, fa, fb, sum_s, sum_z);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      load_floats<N>(q.dh + first + c, dh[0]);
      load_floats<N>(q.h + first + c, h[0]);
      store_gradients<N>(q, first + c, dh[0], h[0], a, b, fa, fb, sum_s, sum_z);
    }
  }
  if (q.s != nullptr) {
    const float sum = row_sum<Lanes>(sum_s);
    if (begin == 0) q.sum_s[row] = sum;
  }
  if (q.z != nullptr) {
    const float sum = row_sum<Lanes>(sum_z);
    if (begin == 0) q.sum_z[row] = sum;
  }
}

/// Calls fn with the constants N, Lanes, Kept that suit rows of `cols` elements of T.
template <typename T, typename Fn>
void with_row_shape(int64_t cols, bool packs, Fn&& fn) {
  const auto with_lanes = [&](auto n) {
    constexpr int kWarpKeeps = kWarp * decltype(n)::value * kKept;
    constexpr int kBlockKeeps = kThreads * decltype(n)::value * kKept;
    constexpr std::integral_constant<int, kWarp> kByWarp{};
    constexpr std::integral_constant<int, kThreads> kByBlock{};
    if (cols <= kWarpKeeps) return fn(n, kByWarp, std::true_type{});
    if (cols <= kBlockKeeps) return fn(n, kByBlock, std::true_type{});
    fn(n, kByBlock, std::false_type{});
  };
  if (packs) return with_lanes(std::integral_constant<int, kElementsOf16Bytes<T>>{});
  with_lanes(std::integral_constant<int, 1>{});
}

template <typename T>
const T* given(const ConstTensorView& view) {
  return view.empty() ? nullptr : view.as<T>();
}
template <typename T>
T* given(const TensorView& view) {
  return view.empty() ? nullptr : view.as<T>();
}

}  // namespace

void residual_rmsnorm_fwd_cuda(const Exec& exec, const ResidualRmsnormFwd& args) {
  const int64_t cols = args.x.shape().cols(), rows = args.x.shape().rows();
  if (rows == 0) return;
  with_cuda_type(args.x.dtype(), "residual_rmsnorm", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Fwd<T> q{.x = given<T>(args.x),
                   .y = given<T>(args.y),
                   .z = given<T>(args.z),
                   .s = given<T>(args.s),
                   .t = given<T>(args.t),
                   .h = given<T>(args.h),
                   .rstd = args.rstd.as<float>(),
                   .a = {args.ca, args.a, args.ia},
                   .b = {args.cb, args.b, args.ib},
                   .rows = rows,
                   .cols = cols,
                   .eps = static_cast<float>(args.eps),
                   .scale = static_cast<float>(args.scale)};
    const bool packs = rows_of_16_bytes<T>(cols, {q.x, q.y, q.z, q.s, q.t, q.h});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      fwd_kernel<T, decltype(n)::value, decltype(lanes)::value, decltype(kept)::value>
          <<<grid_for(rows, kThreads / decltype(lanes)::value), kThreads, 0, cuda_stream(exec)>>>(
              q);
    });
  });
  cuda::check_launch("residual_rmsnorm");
}

void residual_rmsnorm_bwd_cuda(const Exec& exec, const ResidualRmsnormBwd& args) {
  const int64_t cols = args.dh.shape().cols(), rows = args.dh.shape().rows();
  if (rows == 0) return;
  auto* sums = reinterpret_cast<float*>(exec.scratch.data());
  with_cuda_type(args.dh.dtype(), "residual_rmsnorm_bwd", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Bwd<T> q{.dh = given<T>(args.dh),
                   .h = given<T>(args.h),
                   .dt_in = given<T>(args.dt_in),
                   .s = args.da.empty() ? nullptr : given<T>(args.s),
                   .z = args.db.empty() ? nullptr : given<T>(args.z),
                   .dz_in = given<T>(args.dz_in),
                   .rstd = args.rstd.as<float>(),
                   .ds = given<T>(args.ds),
                   .dz = given<T>(args.dz),
                   .sum_s = sums,
                   .sum_z = sums + rows,
                   .a = {args.ca, args.a, args.ia},
                   .b = {args.cb, args.b, args.ib},
                   .rows = rows,
                   .cols = cols,
                   .scale = static_cast<float>(args.scale)};
    const bool packs =
        rows_of_16_bytes<T>(cols, {q.dh, q.h, q.dt_in, q.s, q.z, q.dz_in, q.ds, q.dz});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      bwd_kernel<T, decltype(n)::value, decltype(lanes)::value, decltype(kept)::value>
          <<<grid_for(rows, kThreads / decltype(lanes)::value), kThreads, 0, cuda_stream(exec)>>>(
              q);
    });
  });
  if (!args.da.empty())
    add_factor_gradient(exec, sums, rows, args.ca, args.da.as<float>() + args.ia);
  if (!args.db.empty())
    add_factor_gradient(exec, sums + rows, rows, args.cb, args.db.as<float>() + args.ib);
  cuda::check_launch("residual_rmsnorm_bwd");
}

}  // namespace tightloop
