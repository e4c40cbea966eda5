#pragma once

#include "tightloop/ops/residual_rmsnorm/residual_rmsnorm.h"

namespace tightloop {

constexpr int64_t kResidualRmsnormBlocks = 64;  // row blocks of da and db: fixed, so bits repeat

void residual_rmsnorm_fwd_ref(const ResidualRmsnormFwd& args);
void residual_rmsnorm_bwd_ref(const ResidualRmsnormBwd& args);
void residual_rmsnorm_fwd_cpu(const ResidualRmsnormFwd& args);
/// scratch: 2 * kResidualRmsnormBlocks doubles when da or db is given.
void residual_rmsnorm_bwd_cpu(const ResidualRmsnormBwd& args, double* scratch);
void residual_rmsnorm_fwd_cuda(const Exec& exec, const ResidualRmsnormFwd& args);
/// exec.scratch: 2 floats a row when da or db is given.
void residual_rmsnorm_bwd_cuda(const Exec& exec, const ResidualRmsnormBwd& args);

}  // namespace tightloop
