#include "tightloop/ops/common/cuda_row_shape.cuh"
#include "tightloop/ops/common/scaled_term.cuh"
#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm_kernels.h"

namespace tightloop {
namespace {

/// Threads of a block: where a warp takes a row, few, so that what registers allow is filled.
template <int Lanes>
constexpr int kThreadsOf = Lanes == kWarp ? 128 : Lanes;

template <typename T>
struct Fwd {
  const T *x, *y, *u, *z;  // all but x may be null
  T *s, *t, *h;            // s and t may be null
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
  float *sum_s, *sum_z;  // one a block
  CudaFactor a, b;
  int64_t rows, cols;
  float scale;
};

template <int Lanes>
__device__ int64_t row_of_thread() {
  return (blockIdx.x * static_cast<int64_t>(kThreadsOf<Lanes>) + threadIdx.x) / Lanes;
}

/// The terms of N elements as they are stored.
template <typename T, int N>
struct Terms {
  Stored<T, N> x, y, u, z;
  __device__ void load(const Fwd<T>& q, int64_t i) {
    x.load(q.x + i);
    if (q.y != nullptr) y.load(q.y + i);
    if (q.u != nullptr) u.load(q.u + i);
    if (q.z != nullptr) z.load(q.z + i);
  }
};

/// Sums N elements from i on: t in float32, rounded only where it is stored, and s likewise. Adds
/// to the sum of squares.
template <int N, typename T>
__device__ void add_terms(const Fwd<T>& q,
                          int64_t i,
                          float fa,
                          float fb,
                          const Terms<T, N>& of,
                          float (&t)[N],
                          float& squares) {
#pragma unroll
  for (int j = 0; j < N; ++j) t[j] = of.x.at(j);
  if (q.y != nullptr) {
#pragma unroll
    for (int j = 0; j < N; ++j) t[j] += of.y.at(j);
    if (q.u != nullptr) {
#pragma unroll
      for (int j = 0; j < N; ++j) t[j] += of.u.at(j);
    }
    if (q.s != nullptr) store_floats<N>(q.s + i, t);
  }
  if (q.z != nullptr) {
#pragma unroll
    for (int j = 0; j < N; ++j) t[j] = fa * t[j] + fb * of.z.at(j);
  }
  if (q.t != nullptr) store_floats<N>(q.t + i, t);
#pragma unroll
  for (int j = 0; j < N; ++j) squares += t[j] * t[j];
}

template <int N, typename T>
__device__ void store_scaled(T* h, const float (&t)[N], float factor) {
  float x[N];
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = factor * t[j];
  store_floats<N>(h, x);
}

/// The row has at most `Packs` packs a lane; 0: what was stored is read again. Results may lie in
/// the place of inputs, so the compiler moves no load before a store: the terms of up to kFewPacks
/// packs are loaded before anything is stored.
template <typename T, int N, int Lanes, int Packs>
__global__ void __launch_bounds__(kThreadsOf<Lanes>) fwd_kernel(Fwd<T> q) {
  const int64_t row = row_of_thread<Lanes>();
  if (row >= q.rows) return;
  const int64_t first = row * q.cols;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  constexpr int64_t kStep = Lanes * N;
  const float a = q.a.stored(), b = q.b.stored();

  constexpr int kKept = Packs == 0 ? 1 : Packs;
  constexpr int kAhead = kKept <= kFewPacks ? kKept : (kKept + 1) / 2;
  float kept[kKept][N];
  float squares = 0.0f, fa, fb;
  if constexpr (Packs > 0) {
#pragma unroll
    for (int group = 0; group < kKept; group += kAhead) {
      Terms<T, N> terms[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead && group + k < kKept; ++k) {
        const int64_t c = begin + (group + k) * kStep;
        if (c < q.cols) terms[k].load(q, first + c);
      }
      if (group == 0) fa = q.a.of(a), fb = q.b.of(b);
#pragma unroll
      for (int k = 0; k < kAhead && group + k < kKept; ++k) {
        const int64_t c = begin + (group + k) * kStep;
        if (c < q.cols) add_terms(q, first + c, fa, fb, terms[k], kept[group + k], squares);
      }
    }
  } else {
    fa = q.a.of(a), fb = q.b.of(b);
    for (int64_t c = begin; c < q.cols; c += kStep) {
      Terms<T, N> terms;
      terms.load(q, first + c);
      add_terms(q, first + c, fa, fb, terms, kept[0], squares);
    }
  }
  const float mean = row_sum<Lanes>(squares) / static_cast<float>(q.cols);
  const float rstd = 1.0f / sqrtf(mean + q.eps), factor = rstd * q.scale;
  if (begin == 0) q.rstd[row] = rstd;
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c < q.cols) store_scaled<N>(q.h + first + c, kept[k], factor);
    }
  } else {
    const T* t = q.y == nullptr && q.z == nullptr ? q.x : q.t;
    for (int64_t c = begin; c < q.cols; c += kStep) {
      if (t != nullptr) {  // each thread reads what it wrote itself
        load_floats(t + first + c, kept[0]);
      } else {
        Terms<T, N> terms;
        terms.load(q, first + c);
        add_terms(q, first + c, fa, fb, terms, kept[0], squares);
      }
      store_scaled<N>(q.h + first + c, kept[0], factor);
    }
  }
}

/// What a lane reads besides dh and h for N elements; zeros where it is not given.
template <typename T, int N, bool Scaled>
struct Others {
  Stored<T, N> dt_in, s, z, dz_in;
  __device__ void load(const Bwd<T>& q, int64_t i) {
    if (q.dt_in != nullptr) dt_in.load(q.dt_in + i);
    if constexpr (Scaled) {
      if (q.s != nullptr) s.load(q.s + i);
      if (q.z != nullptr) z.load(q.z + i);
      if (q.dz_in != nullptr) dz_in.load(q.dz_in + i);
    }
  }
};

template <typename T, int N>
__device__ float dot_of(const Stored<T, N>& x, const Stored<T, N>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < N; ++j) sum += x.at(j) * y.at(j);
  return sum;
}

/// The numbers of a row that its gradients are made with.
struct BwdRow {
  float a, b, fa, fb;
};

/// What a lane adds up for the gradients of the factors.
struct BwdSums {
  float s = 0.0f, z = 0.0f;
};

/// ds and dz of N elements from i on, dt being a * dh - b * h + dt_in; adds to the two sums.
template <typename T, int N, bool Scaled>
__device__ void store_gradients(const Bwd<T>& q,
                                int64_t i,
                                const Stored<T, N>& dh,
                                const Stored<T, N>& h,
                                const Others<T, N, Scaled>& other,
                                const BwdRow& row,
                                BwdSums& sums) {
  float ds[N], dz[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float dt = row.a * dh.at(j) - row.b * h.at(j) + other.dt_in.at(j);
    ds[j] = dt;
    if constexpr (Scaled) {
      sums.s += dt * other.s.at(j);
      sums.z += dt * other.z.at(j);
      dz[j] = row.fb * dt + other.dz_in.at(j);
      ds[j] = row.fa * dt;
    }
  }
  if constexpr (Scaled) store_floats<N>(q.dz + i, dz);
  store_floats<N>(q.ds + i, ds);
}

/// One row, by Lanes threads. As in the forward, the compiler moves no load before a store: what
/// the first kAhead packs need is loaded before anything is used, and what a later one needs before
/// the results of the one kAhead places before it are stored.
template <typename T, int N, int Lanes, int Packs, bool Scaled>
__device__ void bwd_row(const Bwd<T>& q, int64_t row, BwdSums& sums) {
  const int64_t first = row * q.cols;
  const int64_t begin = (threadIdx.x % Lanes) * N;
  constexpr int64_t kStep = Lanes * N;
  constexpr int kKept = Packs == 0 ? 1 : Packs;
  constexpr int kAhead = !Scaled || kKept < 3 ? kKept : 3;

  Stored<T, N> dh[kKept], h[kKept];
  Others<T, N, Scaled> other[kKept]{};
  const float rstd = q.rstd[row], a = Scaled ? q.a.stored() : 1.0f,
              b = Scaled ? q.b.stored() : 1.0f;
  float dot = 0.0f;
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c >= q.cols) continue;
      dh[k].load(q.dh + first + c);
      h[k].load(q.h + first + c);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t c = begin + k * kStep;
      if (c < q.cols) other[k].load(q, first + c);
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (begin + k * kStep < q.cols) dot += dot_of(dh[k], h[k]);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      dh[0].load(q.dh + first + c);
      h[0].load(q.h + first + c);
      dot += dot_of(dh[0], h[0]);
    }
  }
  const float mean = row_sum<Lanes>(dot) / static_cast<float>(q.cols);
  const BwdRow made{
      .a = rstd * q.scale, .b = rstd * mean / q.scale, .fa = q.a.of(a), .fb = q.b.of(b)};
  if constexpr (Packs > 0) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = begin + k * kStep;
      if (c >= q.cols) continue;
      if (k + kAhead < kKept && c + kAhead * kStep < q.cols)
        other[k + kAhead].load(q, first + c + kAhead * kStep);
      store_gradients(q, first + c, dh[k], h[k], other[k], made, sums);
    }
  } else {
    for (int64_t c = begin; c < q.cols; c += kStep) {
      dh[0].load(q.dh + first + c);
      h[0].load(q.h + first + c);
      other[0].load(q, first + c);
      store_gradients(q, first + c, dh[0], h[0], other[0], made, sums);
    }
  }
}

/// Scaled: dz is wanted; without, neither s, z nor dz_in is given.
template <typename T, int N, int Lanes, int Packs, bool Scaled>
__global__ void __launch_bounds__(kThreadsOf<Lanes>) bwd_kernel(Bwd<T> q) {
  const int64_t row = row_of_thread<Lanes>();
  BwdSums sums;
  if (row < q.rows) bwd_row<T, N, Lanes, Packs, Scaled>(q, row, sums);
  if constexpr (Scaled) {
    if (q.s != nullptr) {
      const float sum = block_sum<kThreadsOf<Lanes>>(sums.s);
      if (threadIdx.x == 0) q.sum_s[blockIdx.x] = sum;
    }
    if (q.z != nullptr) {
      const float sum = block_sum<kThreadsOf<Lanes>>(sums.z);
      if (threadIdx.x == 0) q.sum_z[blockIdx.x] = sum;
    }
  }
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
                   .u = given<T>(args.u),
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
    const bool packs = rows_of_16_bytes<T>(cols, {q.x, q.y, q.u, q.z, q.s, q.t, q.h});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      constexpr int kLanes = decltype(lanes)::value, kThreads = kThreadsOf<kLanes>;
      fwd_kernel<T, decltype(n)::value, kLanes, decltype(kept)::value>
          <<<grid_for(rows, kThreads / kLanes), kThreads, 0, cuda_stream(exec)>>>(q);
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
    Bwd<T> q{.dh = given<T>(args.dh),
             .h = given<T>(args.h),
             .dt_in = given<T>(args.dt_in),
             .s = args.da.empty() ? nullptr : given<T>(args.s),
             .z = args.db.empty() ? nullptr : given<T>(args.z),
             .dz_in = given<T>(args.dz_in),
             .rstd = args.rstd.as<float>(),
             .ds = given<T>(args.ds),
             .dz = given<T>(args.dz),
             .sum_s = nullptr,
             .sum_z = nullptr,
             .a = {args.ca, args.a, args.ia},
             .b = {args.cb, args.b, args.ib},
             .rows = rows,
             .cols = cols,
             .scale = static_cast<float>(args.scale)};
    const bool packs =
        rows_of_16_bytes<T>(cols, {q.dh, q.h, q.dt_in, q.s, q.z, q.dz_in, q.ds, q.dz});
    with_row_shape<T>(cols, packs, [&](auto n, auto lanes, auto kept) {
      constexpr int kN = decltype(n)::value, kLanes = decltype(lanes)::value;
      constexpr int kPacks = decltype(kept)::value, kThreads = kThreadsOf<kLanes>;
      const unsigned blocks = grid_for(rows, kThreads / kLanes);
      q.sum_s = sums, q.sum_z = sums + blocks;
      const auto kernel = q.dz != nullptr ? bwd_kernel<T, kN, kLanes, kPacks, true>
                                          : bwd_kernel<T, kN, kLanes, kPacks, false>;
      kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(q);
      add_factor_gradients(exec, sums, blocks, {args.ca, args.da, args.ia},
                           {args.cb, args.db, args.ib});
    });
  });
  cuda::check_launch("residual_rmsnorm_bwd");
}

}  // namespace tightloop
