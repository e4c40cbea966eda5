#pragma once

#include "tightloop/ops/relu2/relu2.h"

namespace tightloop {

void relu2_fwd_cuda(const Exec& exec, const ConstTensorView& x, const TensorView& y);
void relu2_bwd_cuda(const Exec& exec,
                    const ConstTensorView& dy,
                    const ConstTensorView& x,
                    const TensorView& dx);

}  // namespace tightloop
