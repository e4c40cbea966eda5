#pragma once

#include "tightloop/ops/swiglu/swiglu.h"

namespace tightloop {

void swiglu_fwd_cuda(const Exec& exec,
                     const ConstTensorView& gate,
                     const ConstTensorView& up,
                     const TensorView& y);
void swiglu_bwd_cuda(const Exec& exec,
                     const ConstTensorView& dy,
                     const ConstTensorView& gate,
                     const ConstTensorView& up,
                     const TensorView& dgate,
                     const TensorView& dup);

}  // namespace tightloop
