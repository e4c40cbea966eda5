#include "tightloop/ops/common/rotary.cuh"
#include "tightloop/ops/qknorm_rope/qknorm_rope_kernels.h"

// Rows are heads. A lane keeps its first N elements of both halves in registers, which is all of
// them for heads of up to 64 N, and reads any others twice. No lane reads what another one writes,
// so results may lie in the place of inputs.
namespace tightloop {
namespace {

/// N neighbours of both halves of a head.
template <typename T, int N>
struct Halves {
  Stored<T, N> a, b;
  __device__ void load(const T* x, int64_t j, int64_t half) { a.load(x + j), b.load(x + half + j); }
  __device__ void get(float (&to_a)[N], float (&to_b)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) to_a[i] = a.at(i), to_b[i] = b.at(i);
  }
};

template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads) fwd_rows(
    const T* x, T* y, float* rstd, Angles angles, int64_t rows, int lanes, float eps, float scale) {
  const RowLane at(lanes);
  const int64_t dim = angles.dim, half = dim / 2, first = at.lane * N, step = lanes * N;
  const bool present = at.row < rows;
  x += at.row * dim, y += at.row * dim;
  Halves<T, N> kept{};
  if (present && first < half) kept.load(x, first, half);
  const float* cos_sin = present ? angles.of_row(at.row) : nullptr;
  // The rotation keeps the length only as far as cos^2 + sin^2 = 1 in the table: the rotated head
  // is what gets normalised.
  float a[N], b[N], squares = 0.0f;
  const auto rotated = [&](const Halves<T, N>& of, int64_t j, float(&to_a)[N], float(&to_b)[N]) {
    of.get(to_a, to_b);
    rotate(to_a, to_b, cos_sin, j, half, 1.0f);
  };
  if (present && first < half) {
    rotated(kept, first, a, b);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += a[i] * a[i] + b[i] * b[i];
  }
  for (int64_t j = first + step; present && j < half; j += step) {
    Halves<T, N> more;
    float c[N], d[N];
    more.load(x, j, half);
    rotated(more, j, c, d);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += c[i] * c[i] + d[i] * d[i];
  }
  const float r = 1.0f / sqrtf(group_sum(squares, lanes) / static_cast<float>(dim) + eps);
  if (!present) return;
  if (at.lane == 0) rstd[at.row] = r;
  const float factor = r * scale;
  for (int64_t j = first; j < half; j += step) {
    if (j > first) {
      Halves<T, N> more;
      more.load(x, j, half);
      rotated(more, j, a, b);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] *= factor, b[i] *= factor;
    store_floats(y + j, a), store_floats(y + half + j, b);
  }
}

template <typename T, int N>
__device__ float dot_of(const Halves<T, N>& x, const Halves<T, N>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += x.a.at(i) * y.a.at(i) + x.b.at(i) * y.b.at(i);
  return sum;
}

template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads) bwd_rows(const T* dy,
                                                         const T* y,
                                                         const float* rstd,
                                                         T* dx,
                                                         Angles angles,
                                                         int64_t rows,
                                                         int lanes,
                                                         float scale) {
  const RowLane at(lanes);
  const int64_t dim = angles.dim, half = dim / 2, first = at.lane * N, step = lanes * N;
  const bool present = at.row < rows;
  dy += at.row * dim, y += at.row * dim, dx += at.row * dim;
  Halves<T, N> kept_dy{}, kept_y{};
  if (present && first < half) kept_dy.load(dy, first, half), kept_y.load(y, first, half);
  const float r = present ? rstd[at.row] : 0.0f;
  float dot = dot_of(kept_dy, kept_y);  // zeros where there is nothing
  for (int64_t j = first + step; present && j < half; j += step) {
    Halves<T, N> more_dy, more_y;
    more_dy.load(dy, j, half), more_y.load(y, j, half);
    dot += dot_of(more_dy, more_y);
  }
  const float mean = group_sum(dot, lanes) / static_cast<float>(dim);  // of g * xhat
  if (!present) return;
  const float* cos_sin = angles.of_row(at.row);
  const float ga = r * scale, gb = r * mean / scale;
  for (int64_t j = first; j < half; j += step) {
    if (j > first) kept_dy.load(dy, j, half), kept_y.load(y, j, half);
    float da[N], db[N], a[N], b[N];
    kept_dy.get(da, db), kept_y.get(a, b);
#pragma unroll
    for (int i = 0; i < N; ++i) da[i] = ga * da[i] - gb * a[i], db[i] = ga * db[i] - gb * b[i];
    rotate(da, db, cos_sin, j, half, -1.0f);
    store_floats(dx + j, da), store_floats(dx + half + j, db);
  }
}

template <typename T, int N>
void launch_fwd(const Exec& exec, const QknormRopeFwd& a, const Angles& angles) {
  const int64_t rows = a.x.shape().rows();
  const int lanes = lanes_for(angles.dim / 2 / N);
  fwd_rows<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.x.as<T>(), a.y.as<T>(), a.rstd.as<float>(), angles, rows, lanes, static_cast<float>(a.eps),
      static_cast<float>(a.scale));
}

template <typename T, int N>
void launch_bwd(const Exec& exec, const QknormRopeBwd& a, const Angles& angles) {
  const int64_t rows = a.dy.shape().rows();
  const int lanes = lanes_for(angles.dim / 2 / N);
  bwd_rows<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.dy.as<T>(), a.y.as<T>(), a.rstd.as<float>(), a.dx.as<T>(), angles, rows, lanes,
      static_cast<float>(a.scale));
}

}  // namespace

void qknorm_rope_fwd_cuda(const Exec& exec, const QknormRopeFwd& a) {
  if (a.x.elems() == 0) return;
  const Angles angles = angles_of("qknorm_rope", a.x.shape(), a.table, a.pos);
  with_cuda_type(a.x.dtype(), "qknorm_rope", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rows_of_16_bytes<T>(angles.dim / 2, {a.x.data, a.y.data, angles.table})
        ? launch_fwd<T, kElementsOf16Bytes<T>>(exec, a, angles)
        : launch_fwd<T, 1>(exec, a, angles);
  });
  cuda::check_launch("qknorm_rope");
}

void qknorm_rope_bwd_cuda(const Exec& exec, const QknormRopeBwd& a) {
  if (a.dy.elems() == 0) return;
  const Angles angles = angles_of("qknorm_rope_bwd", a.dy.shape(), a.table, a.pos);
  with_cuda_type(a.dy.dtype(), "qknorm_rope_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rows_of_16_bytes<T>(angles.dim / 2, {a.dy.data, a.y.data, a.dx.data, angles.table})
        ? launch_bwd<T, kElementsOf16Bytes<T>>(exec, a, angles)
        : launch_bwd<T, 1>(exec, a, angles);
  });
  cuda::check_launch("qknorm_rope_bwd");
}

}  // namespace tightloop
