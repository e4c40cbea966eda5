#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/relu2/relu2_kernels.h"

namespace tightloop {
namespace {

struct Forward {
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const {
    const float r = x[0] > 0.0f ? x[0] : 0.0f;
    y[0] = r * r;
  }
};

struct Backward {
  __device__ void operator()(const float (&dy_x)[2], float (&dx)[1]) const {
    const float r = dy_x[1] > 0.0f ? dy_x[1] : 0.0f;
    dx[0] = 2.0f * r * dy_x[0];
  }
};

}  // namespace

void relu2_fwd_cuda(const Exec& exec, const ConstTensorView& x, const TensorView& y) {
  with_cuda_type(x.dtype(), "relu2", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 1, 1>(exec, "relu2", x.elems(), {x.as<T>()}, {y.as<T>()}, Forward{});
  });
}

void relu2_bwd_cuda(const Exec& exec,
                    const ConstTensorView& dy,
                    const ConstTensorView& x,
                    const TensorView& dx) {
  with_cuda_type(dy.dtype(), "relu2_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, "relu2_bwd", dy.elems(), {dy.as<T>(), x.as<T>()}, {dx.as<T>()},
                      Backward{});
  });
}

}  // namespace tightloop
