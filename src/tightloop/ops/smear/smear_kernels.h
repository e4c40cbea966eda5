#pragma once

#include "tightloop/ops/smear/smear.h"

namespace tightloop {

constexpr int64_t kSmearBlocks = 64;  // row blocks of the parameters' gradients: fixed

/// `prev`: (B, C) rows before the first token of each sequence, or null when there are none.
void smear_fwd_ref(const SmearFwd& args, const double* prev);
void smear_bwd_ref(const SmearBwd& args);
void smear_fwd_cpu(const SmearFwd& args, const float* prev);
/// scratch: kSmearBlocks * (m + 1) doubles when dw or dlambda is given.
void smear_bwd_cpu(const SmearBwd& args, double* scratch);

}  // namespace tightloop
