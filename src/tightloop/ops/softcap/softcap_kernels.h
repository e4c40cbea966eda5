#pragma once

#include "tightloop/ops/softcap/softcap.h"

namespace tightloop {

void softcap_fwd_cuda(const Exec& exec, const ConstTensorView& x, const TensorView& y, double cap);
void softcap_bwd_cuda(const Exec& exec,
                      const ConstTensorView& dy,
                      const ConstTensorView& y,
                      const TensorView& dx,
                      double cap);

}  // namespace tightloop
