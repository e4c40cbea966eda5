#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/softcap/softcap_kernels.h"

namespace tightloop {
namespace {

struct Forward {
  float cap, inverse;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const {
    y[0] = cap * tanhf(x[0] * inverse);
  }
};

struct Backward {
  float inverse;
  __device__ void operator()(const float (&dy_y)[2], float (&dx)[1]) const {
    const float u = dy_y[1] * inverse;
    dx[0] = dy_y[0] * (1.0f - u * u);
  }
};

}  // namespace

void softcap_fwd_cuda(const Exec& exec, const ConstTensorView& x, const TensorView& y, double cap) {
  const auto c = static_cast<float>(cap);
  with_cuda_type(x.dtype(), "softcap", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 1, 1>(exec, "softcap", x.elems(), {x.as<T>()}, {y.as<T>()}, Forward{c, 1.0f / c});
  });
}

void softcap_bwd_cuda(const Exec& exec,
                      const ConstTensorView& dy,
                      const ConstTensorView& y,
                      const TensorView& dx,
                      double cap) {
  const float inverse = 1.0f / static_cast<float>(cap);
  with_cuda_type(dy.dtype(), "softcap_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, "softcap_bwd", dy.elems(), {dy.as<T>(), y.as<T>()}, {dx.as<T>()},
                      Backward{inverse});
  });
}

}  // namespace tightloop
