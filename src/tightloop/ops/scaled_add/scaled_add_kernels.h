#pragma once

#include "tightloop/ops/scaled_add/scaled_add.h"

namespace tightloop {

constexpr int64_t kScaledAddBlocks = 64;  // blocks of the two sums: fixed, so bits repeat

void scaled_add_fwd_ref(const ScaledAddFwd& args);
void scaled_add_bwd_ref(const ScaledAddBwd& args);
void scaled_add_fwd_cpu(const ScaledAddFwd& args);
/// scratch: 2 * kScaledAddBlocks doubles when da or db is given.
void scaled_add_bwd_cpu(const ScaledAddBwd& args, double* scratch);

}  // namespace tightloop
