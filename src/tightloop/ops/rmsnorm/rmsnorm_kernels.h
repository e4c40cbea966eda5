#pragma once

#include "tightloop/ops/rmsnorm/rmsnorm.h"

namespace tightloop {

constexpr int64_t kRmsnormBlocks = 64;  // row blocks of the weight gradient: fixed, so bits repeat
constexpr int64_t kRmsnormCudaBlocks = 396;  // on cuda, at most

void rmsnorm_fwd_ref(const RmsnormFwd& args);
void rmsnorm_bwd_ref(const RmsnormBwd& args);
void rmsnorm_fwd_cpu(const RmsnormFwd& args);
/// scratch: kRmsnormBlocks * cols floats when dweight is given.
void rmsnorm_bwd_cpu(const RmsnormBwd& args, float* scratch);
void rmsnorm_fwd_cuda(const Exec& exec, const RmsnormFwd& args);
/// exec.scratch: kRmsnormCudaBlocks * cols floats when dweight is given.
void rmsnorm_bwd_cuda(const Exec& exec, const RmsnormBwd& args);

}  // namespace tightloop
