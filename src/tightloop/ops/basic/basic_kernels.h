#pragma once

#include "tightloop/ops/basic/basic.h"

namespace tightloop {

constexpr int64_t kSumBlock =
    8192;  // elements of one partial sum: fixed, so sums repeat bit for bit

void add_cuda(const Exec& exec, const OpCall& call);
void mul_cuda(const Exec& exec, const OpCall& call);
/// exec.scratch: one double for each block of kSumBlock elements, and one more.
void sum_cuda(const Exec& exec, const OpCall& call);
void broadcast_cuda(const Exec& exec, const OpCall& call);
void constant_cuda(const Exec& exec, const OpCall& call);
void copy_cuda(const Exec& exec, const TensorView& to, const ConstTensorView& from);
void cast_cuda(const Exec& exec, const OpCall& call);
/// slot += x.
void accumulate_cuda(const Exec& exec, const OpCall& call);
void fill_cuda(const Exec& exec, const OpCall& call);

}  // namespace tightloop
