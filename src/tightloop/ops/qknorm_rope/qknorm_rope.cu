#include "tightloop/ops/common/rotary.cuh"
#include "tightloop/ops/qknorm_rope/qknorm_rope_kernels.h"

// A few lanes share a head, and take up to K heads of one token, which have their angles in common.
// A lane keeps N elements of both halves in registers, loaded before anything waits: packs of heads
// of up to 64 N elements. Other heads go element by element, those beyond the first read twice. No
// lane reads what another one writes, so results may lie in the place of inputs.
namespace tightloop {
namespace {

/// What 64 registers a thread allow without spilling, in bf16.
constexpr int kFwdHeads = 3, kBwdHeads = 2, kBlocksAtOnce = 4;

/// Whether lanes with N elements of both halves may be too few for a head.
template <int N>
constexpr bool kLong = N == 1;

template <typename T>
struct Fwd {
  const T* x;
  T* y;
  float* rstd;
  Angles angles;
  Divisor parts;  // of a token's heads
  int64_t groups;
  int lanes;
  float eps, scale, per_element;  // per_element: 1 / D
};

template <typename T>
struct Bwd {
  const T *dy, *y;
  const float* rstd;
  T* dx;
  Angles angles;
  Divisor parts;
  int64_t groups;
  int lanes;
  float scale, per_scale, per_element;  // 1 / scale, 1 / D
};

/// Where a thread stands. Every thread of a warp gets a place, also beyond the last group, for
/// group_sums.
template <int K>
struct HeadsLane {
  int lane, heads;  // heads: those of this group, 0 beyond the last one
  unsigned token;
  int64_t row;  // of the first of these heads

  template <typename Args>
  __device__ explicit HeadsLane(const Args& q) {
    const RowLane at(q.lanes);
    lane = at.lane;
    const auto group = static_cast<unsigned>(at.row < q.groups ? at.row : 0);
    token = q.parts.quotient(group);
    const unsigned of_token = q.angles.heads.by, head = (group - token * q.parts.by) * K;
    heads = at.row < q.groups ? static_cast<int>(min(of_token - head, unsigned{K})) : 0;
    row = static_cast<int64_t>(token) * of_token + head;
  }
};

/// N neighbours of both halves of a head.
template <typename T, int N>
struct Halves {
  Stored<T, N> a, b;
  __device__ void load(const T* x, int j, int half) { a.load(x + j), b.load(x + half + j); }
  __device__ void get(float (&to_a)[N], float (&to_b)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) to_a[i] = a.at(i), to_b[i] = b.at(i);
  }
};

/// Adds the squares of N elements of both halves of each head as they are after the rotation, which
/// keeps the length only as far as cos^2 + sin^2 = 1 in the table: the rotated head is what gets
/// normalised.
template <typename T, int N, int K>
__device__ void add_squares(const Halves<T, N> (&x)[K], const Turn<N>& turn, float (&squares)[K]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float length = turn.cos[i] * turn.cos[i] + turn.sin[i] * turn.sin[i];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const float a = x[k].a.again(i), b = x[k].b.again(i);
      squares[k] += (a * a + b * b) * length;
    }
  }
}

template <typename T, int N, int K>
__global__ void __launch_bounds__(kLaneThreads, kBlocksAtOnce) fwd_rows(Fwd<T> q) {
  const HeadsLane<K> at(q);
  const int dim = q.angles.dim, half = dim / 2, first = at.lane * N, step = q.lanes * N;
  const T* x = q.x + at.row * dim;
  T* y = q.y + at.row * dim;
  const float* cos_sin = q.angles.of_token(at.token);
  Halves<T, N> kept[K]{};  // zeros where there is nothing
  Turn<N> turn{};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k < at.heads && first < half) kept[k].load(x + k * dim, first, half);
  }
  if (at.heads > 0 && first < half) turn.load(cos_sin, first, half);

  float squares[K]{};
  add_squares(kept, turn, squares);
  for (int j = first + step; kLong<N> && at.heads > 0 && j < half; j += step) {
    Halves<T, N> more[K]{};
    Turn<N> by;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k < at.heads) more[k].load(x + k * dim, j, half);
    }
    by.load(cos_sin, j, half);
    add_squares(more, by, squares);
  }
  group_sums(squares, q.lanes);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k >= at.heads) continue;
    const float r = __frsqrt_rn(squares[k] * q.per_element + q.eps);
    if (at.lane == 0) q.rstd[at.row + k] = r;
    const float factor = r * q.scale;
    for (int j = first; j < half; j += step) {
      Turn<N> by = turn;
      if (kLong<N> && j > first) kept[k].load(x + k * dim, j, half), by.load(cos_sin, j, half);
      float a[N], b[N];
      kept[k].get(a, b);
      by.rotate(a, b, 1.0f);
#pragma unroll
      for (int i = 0; i < N; ++i) a[i] *= factor, b[i] *= factor;
      store_floats(y + k * dim + j, a), store_floats(y + k * dim + half + j, b);
      if (!kLong<N>) break;
    }
  }
}

template <typename T, int N>
__device__ float dot_of(const Halves<T, N>& x, const Halves<T, N>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i)
    sum += x.a.again(i) * y.a.again(i), sum += x.b.again(i) * y.b.again(i);
  return sum;
}

template <typename T, int N, int K>
__global__ void __launch_bounds__(kLaneThreads, kBlocksAtOnce) bwd_rows(Bwd<T> q) {
  const HeadsLane<K> at(q);
  const int dim = q.angles.dim, half = dim / 2, first = at.lane * N, step = q.lanes * N;
  const T *dy = q.dy + at.row * dim, *y = q.y + at.row * dim;
  T* dx = q.dx + at.row * dim;
  const float* cos_sin = q.angles.of_token(at.token);
  Halves<T, N> kept_dy[K]{}, kept_y[K]{};  // zeros where there is nothing
  Turn<N> turn{};
  float rstd[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k < at.heads && first < half)
      kept_dy[k].load(dy + k * dim, first, half), kept_y[k].load(y + k * dim, first, half);
    rstd[k] = k < at.heads ? q.rstd[at.row + k] : 0.0f;
  }
  if (at.heads > 0 && first < half) turn.load(cos_sin, first, half);

  float dots[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    dots[k] = dot_of(kept_dy[k], kept_y[k]);
    for (int j = first + step; kLong<N> && k < at.heads && j < half; j += step) {
      Halves<T, N> more_dy, more_y;
      more_dy.load(dy + k * dim, j, half), more_y.load(y + k * dim, j, half);
      dots[k] += dot_of(more_dy, more_y);
    }
  }
  group_sums(dots, q.lanes);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k >= at.heads) continue;
    const float mean = dots[k] * q.per_element;  // of g * xhat
    const float ga = rstd[k] * q.scale, gb = rstd[k] * mean * q.per_scale;
    for (int j = first; j < half; j += step) {
      Turn<N> by = turn;
      if (kLong<N> && j > first) {
        kept_dy[k].load(dy + k * dim, j, half), kept_y[k].load(y + k * dim, j, half);
        by.load(cos_sin, j, half);
      }
      float da[N], db[N], a[N], b[N];
      kept_dy[k].get(da, db), kept_y[k].get(a, b);
#pragma unroll
      for (int i = 0; i < N; ++i) da[i] = ga * da[i] - gb * a[i], db[i] = ga * db[i] - gb * b[i];
      by.rotate(da, db, -1.0f);
      store_floats(dx + k * dim + j, da), store_floats(dx + k * dim + half + j, db);
      if (!kLong<N>) break;
    }
  }
}

/// Whether both halves of heads go in 16 bytes a lane of a warp, in all arrays.
template <typename T>
bool fits_lanes(const Angles& angles, std::initializer_list<const void*> arrays) {
  const int half = angles.dim / 2;
  return half <= kWarp * kElementsOf16Bytes<T> && rows_of_16_bytes<T>(half, arrays) &&
         start_at_16_bytes({angles.table});
}

/// Parts of up to K heads that a token has.
template <int K>
int64_t parts_of(const Angles& angles) {
  return (int64_t{angles.heads.by} + K - 1) / K;
}

template <typename T, int N, int K>
void launch_fwd(const Exec& exec, const QknormRopeFwd& a, const Angles& angles) {
  const int64_t parts = parts_of<K>(angles);
  const Fwd<T> q{.x = a.x.as<T>(),
                 .y = a.y.as<T>(),
                 .rstd = a.rstd.as<float>(),
                 .angles = angles,
                 .parts = Divisor(parts),
                 .groups = a.x.shape()[0] * a.x.shape()[1] * parts,
                 .lanes = lanes_for(angles.dim / 2 / N),
                 .eps = static_cast<float>(a.eps),
                 .scale = static_cast<float>(a.scale),
                 .per_element = 1.0f / static_cast<float>(angles.dim)};
  fwd_rows<T, N, K><<<lane_blocks(q.groups, q.lanes), kLaneThreads, 0, cuda_stream(exec)>>>(q);
}

template <typename T, int N, int K>
void launch_bwd(const Exec& exec, const QknormRopeBwd& a, const Angles& angles) {
  const int64_t parts = parts_of<K>(angles);
  const Bwd<T> q{.dy = a.dy.as<T>(),
                 .y = a.y.as<T>(),
                 .rstd = a.rstd.as<float>(),
                 .dx = a.dx.as<T>(),
                 .angles = angles,
                 .parts = Divisor(parts),
                 .groups = a.dy.shape()[0] * a.dy.shape()[1] * parts,
                 .lanes = lanes_for(angles.dim / 2 / N),
                 .scale = static_cast<float>(a.scale),
                 .per_scale = static_cast<float>(1.0 / a.scale),
                 .per_element = 1.0f / static_cast<float>(angles.dim)};
  bwd_rows<T, N, K><<<lane_blocks(q.groups, q.lanes), kLaneThreads, 0, cuda_stream(exec)>>>(q);
}

}  // namespace

void qknorm_rope_fwd_cuda(const Exec& exec, const QknormRopeFwd& a) {
  if (a.x.elems() == 0) return;
  const Angles angles = angles_of("qknorm_rope", a.x.shape(), a.table, a.pos);
  with_cuda_type(a.x.dtype(), "qknorm_rope", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    fits_lanes<T>(angles, {a.x.data, a.y.data})
        ? launch_fwd<T, kElementsOf16Bytes<T>, kFwdHeads>(exec, a, angles)
        : launch_fwd<T, 1, 1>(exec, a, angles);
  });
  cuda::check_launch("qknorm_rope");
}

void qknorm_rope_bwd_cuda(const Exec& exec, const QknormRopeBwd& a) {
  if (a.dy.elems() == 0) return;
  const Angles angles = angles_of("qknorm_rope_bwd", a.dy.shape(), a.table, a.pos);
  with_cuda_type(a.dy.dtype(), "qknorm_rope_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    fits_lanes<T>(angles, {a.dy.data, a.y.data, a.dx.data})
        ? launch_bwd<T, kElementsOf16Bytes<T>, kBwdHeads>(exec, a, angles)
        : launch_bwd<T, 1, 1>(exec, a, angles);
  });
  cuda::check_launch("qknorm_rope_bwd");
}

}  // namespace tightloop
