#pragma once

#include "tightloop/ops/scaled_add/scaled_add.h"

namespace tightloop {

// Blocks of the two sums: fixed, so bits repeat.
constexpr int64_t kScaledAddBlocks = 64;
constexpr int kScaledAddCudaBlocks = 1024;

void scaled_add_fwd_ref(const ScaledAddFwd& args);
void scaled_add_bwd_ref(const ScaledAddBwd& args);
void scaled_add_fwd_cpu(const ScaledAddFwd& args);
/// scratch: 2 * kScaledAddBlocks doubles when da or db is given.
void scaled_add_bwd_cpu(const ScaledAddBwd& args, double* scratch);
void scaled_add_fwd_cuda(const Exec& exec, const ScaledAddFwd& args);
/// exec.scratch: 2 * kScaledAddCudaBlocks floats when da or db is given.
void scaled_add_bwd_cuda(const Exec& exec, const ScaledAddBwd& args);

}  // namespace tightloop
