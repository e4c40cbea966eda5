#include "tightloop/ops/common/rotary.cuh"
#include "tightloop/ops/qknorm_rope/qknorm_rope_kernels.h"

// Rows are heads. Each lane reads its elements twice, the second time from the cache; no lane reads
// what another one writes, so results may lie in the place of inputs.
namespace tightloop {
namespace {

template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads) fwd_rows(
    const T* x, T* y, float* rstd, Angles angles, int64_t rows, int lanes, float eps, float scale) {
  const RowLane at(lanes);
  const bool present = at.row < rows;
  const int64_t dim = angles.dim, half = dim / 2;
  x += at.row * dim, y += at.row * dim;
  const float* cos_sin = present ? angles.of_row(at.row) : nullptr;
  // The rotation keeps the length only as far as cos^2 + sin^2 = 1 in the table: the rotated head
  // is what gets normalised.
  float squares = 0.0f;
  for (int64_t j = at.lane * N; present && j < half; j += lanes * N) {
    float a[N], b[N];
    load_floats(x + j, a), load_floats(x + half + j, b);
    rotate(a, b, cos_sin, j, half, 1.0f);
#pragma unroll
    for (int i = 0; i < N; ++i) squares += a[i] * a[i] + b[i] * b[i];
  }
  const float r = 1.0f / sqrtf(group_sum(squares, lanes) / static_cast<float>(dim) + eps);
  if (!present) return;
  if (at.lane == 0) rstd[at.row] = r;
  const float factor = r * scale;
  for (int64_t j = at.lane * N; j < half; j += lanes * N) {
    float a[N], b[N];
    load_floats(x + j, a), load_floats(x + half + j, b);
    rotate(a, b, cos_sin, j, half, 1.0f);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] *= factor, b[i] *= factor;
    store_floats(y + j, a), store_floats(y + half + j, b);
  }
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
  const bool present = at.row < rows;
  const int64_t dim = angles.dim, half = dim / 2;
  dy += at.row * dim, y += at.row * dim, dx += at.row * dim;
  float dot = 0.0f;
  for (int64_t j = at.lane * N; present && j < half; j += lanes * N) {
    float da[N], db[N], a[N], b[N];
    load_floats(dy + j, da), load_floats(dy + half + j, db);
    load_floats(y + j, a), load_floats(y + half + j, b);
#pragma unroll
    for (int i = 0; i < N; ++i) dot += da[i] * a[i] + db[i] * b[i];
  }
  const float mean = group_sum(dot, lanes) / static_cast<float>(dim);  // of g * xhat
  if (!present) return;
  const float* cos_sin = angles.of_row(at.row);
  const float ga = rstd[at.row] * scale, gb = rstd[at.row] * mean / scale;
  for (int64_t j = at.lane * N; j < half; j += lanes * N) {
    float da[N], db[N], a[N], b[N];
    load_floats(dy + j, da), load_floats(dy + half + j, db);
    load_floats(y + j, a), load_floats(y + half + j, b);
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
    rows_of_16_bytes<T>(angles.dim / 2, {a.x.as<T>(), a.y.as<T>()})
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
    rows_of_16_bytes<T>(angles.dim / 2, {a.dy.as<T>(), a.y.as<T>(), a.dx.as<T>()})
        ? launch_bwd<T, kElementsOf16Bytes<T>>(exec, a, angles)
        : launch_bwd<T, 1>(exec, a, angles);
  });
  cuda::check_launch("qknorm_rope_bwd");
}

}  // namespace tightloop
