#pragma once

#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace tightloop {

void linear_cross_entropy_fwd_ref(const LinearCrossEntropyFwd& args);
void linear_cross_entropy_grad_ref(const LinearCrossEntropyGrad& args);
/// scratch: linear_cross_entropy_scratch_bytes.
void linear_cross_entropy_fwd_cpu(const LinearCrossEntropyFwd& args, std::span<std::byte> scratch);
void linear_cross_entropy_grad_cpu(const LinearCrossEntropyGrad& args,
                                   std::span<std::byte> scratch);

enum class LinearCrossEntropyPass { forward, gradient };
/// One chunk's logits, then what the matrix products of the pass need.
int64_t linear_cross_entropy_scratch_bytes(LinearCrossEntropyPass pass,
                                           const Type& x,
                                           const Type& w,
                                           int64_t chunk_rows);

}  // namespace tightloop
