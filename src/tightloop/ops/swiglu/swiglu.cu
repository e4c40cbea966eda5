#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/swiglu/swiglu_kernels.h"

namespace tightloop {
namespace {

__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

struct Forward {
  __device__ void operator()(const float (&gate_up)[2], float (&y)[1]) const {
    y[0] = gate_up[0] * sigmoid(gate_up[0]) * gate_up[1];
  }
};

struct Backward {
  __device__ void operator()(const float (&dy_gate_up)[3], float (&dgate_dup)[2]) const {
    const float d = dy_gate_up[0], g = dy_gate_up[1], u = dy_gate_up[2];
    const float s = sigmoid(g);
    dgate_dup[0] = d * u * s * (1.0f + g * (1.0f - s));
    dgate_dup[1] = d * g * s;
  }
};

}  // namespace

void swiglu_fwd_cuda(const Exec& exec,
                     const ConstTensorView& gate,
                     const ConstTensorView& up,
                     const TensorView& y) {
  with_cuda_type(gate.dtype(), "swiglu", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, "swiglu", gate.elems(), {gate.as<T>(), up.as<T>()}, {y.as<T>()},
                      Forward{});
  });
}

void swiglu_bwd_cuda(const Exec& exec,
                     const ConstTensorView& dy,
                     const ConstTensorView& gate,
                     const ConstTensorView& up,
                     const TensorView& dgate,
                     const TensorView& dup) {
  with_cuda_type(dy.dtype(), "swiglu_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 3, 2>(exec, "swiglu_bwd", dy.elems(), {dy.as<T>(), gate.as<T>(), up.as<T>()},
                      {dgate.as<T>(), dup.as<T>()}, Backward{});
  });
}

}  // namespace tightloop
