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
/// `prev` and `pos` as of SmearCached, or empty.
void smear_fwd_cuda(const Exec& exec,
                    const SmearFwd& args,
                    const ConstTensorView& prev,
                    const ConstTensorView& pos);
/// exec.scratch: as on the CPU, then two floats a token; none when neither dw nor dlambda is given.
void smear_bwd_cuda(const Exec& exec, const SmearBwd& args);
void smear_cached_cuda(const Exec& exec, const SmearCached& args);

}  // namespace tightloop
