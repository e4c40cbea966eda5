#include "tightloop/ops/common/rotary.cuh"
#include "tightloop/ops/rope/rope_kernels.h"

namespace tightloop {
namespace {

template <typename T, int N>
__global__ void __launch_bounds__(kLaneThreads)
    rope_rows(const T* x, T* y, Angles angles, int64_t rows, int lanes, float sign) {
  const RowLane at(lanes);
  if (at.row >= rows) return;
  const int half = angles.dim / 2;
  const float* cos_sin = angles.of_row(at.row);
  x += at.row * angles.dim, y += at.row * angles.dim;
  for (int j = at.lane * N; j < half; j += lanes * N) {
    float a[N], b[N];
    Turn<N> turn;
    load_floats(x + j, a), load_floats(x + half + j, b);
    turn.load(cos_sin, j, half);
    turn.rotate(a, b, sign);
    store_floats(y + j, a), store_floats(y + half + j, b);
  }
}

template <typename T, int N>
void launch(const Exec& exec, const Rope& a, const Angles& angles) {
  const int64_t rows = a.x.shape().rows();
  const int lanes = lanes_for(angles.dim / 2 / N);
  rope_rows<T, N><<<lane_blocks(rows, lanes), kLaneThreads, 0, cuda_stream(exec)>>>(
      a.x.as<T>(), a.y.as<T>(), angles, rows, lanes, a.inverse ? -1.0f : 1.0f);
}

}  // namespace

void rope_cuda(const Exec& exec, const Rope& a) {
  if (a.x.elems() == 0) return;
  const Angles angles = angles_of("rope", a.x.shape(), a.table, a.pos);
  with_cuda_type(a.x.dtype(), "rope", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    rows_of_16_bytes<T>(angles.dim / 2, {a.x.data, a.y.data, angles.table})
        ? launch<T, kElementsOf16Bytes<T>>(exec, a, angles)
        : launch<T, 1>(exec, a, angles);
  });
  cuda::check_launch("rope");
}

}  // namespace tightloop
