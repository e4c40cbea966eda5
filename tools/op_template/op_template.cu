#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/op_template/op_template_kernels.h"

namespace tightloop {
namespace {

struct Forward {
  float scale;
  __device__ void operator()(const float (&x)[1], float (&y)[1]) const {
    y[0] = scale * x[0] * x[0];
  }
};

struct Backward {
  float scale;
  __device__ void operator()(const float (&dy_x)[2], float (&dx)[1]) const {
    dx[0] = 2.0f * scale * dy_x[1] * dy_x[0];
  }
};

}  // namespace

void op_template_fwd_cuda(const Exec& exec, const OpTemplateFwd& a) {
  with_cuda_type(a.x.dtype(), "op_template", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 1, 1>(exec, "op_template", a.x.elems(), {a.x.as<T>()}, {a.y.as<T>()},
                      Forward{static_cast<float>(a.scale)});
  });
}

void op_template_bwd_cuda(const Exec& exec, const OpTemplateBwd& a) {
  with_cuda_type(a.x.dtype(), "op_template_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, "op_template_bwd", a.x.elems(), {a.dy.as<T>(), a.x.as<T>()},
                      {a.dx.as<T>()}, Backward{static_cast<float>(a.scale)});
  });
}

}  // namespace tightloop
