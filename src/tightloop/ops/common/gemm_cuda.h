#pragma once

#include "tightloop/core/exec.h"
#include "tightloop/ops/common/gemm.h"

namespace tightloop {

/// What a product and that which is added to it are multiplied by.
struct GemmCudaFactors {
  float product = 1.0f, added = 1.0f;
};

/// gemm_batched() on device memory, through cuBLASLt: C = epilogue(op(A) op(B)), or C += op(A)
/// op(B). Types:  A and B both f32 (float32 arithmetic, no TF32) or both bf16 (tensor cores, f32
/// sums); C
///         and e f32 or bf16. An f32 C with bf16 operands is stored unrounded.
/// Order:  one algorithm per shape, chosen once a process; the same bits on every run.
/// Scales and a lower-half-only symmetric product are not offered here: the first is
/// Error{unsupported}, the second computes the whole product.
/// With factors, C = product op(A) op(B), plus added e for GemmEpilogue::add with e of C's type.
/// Enqueued on exec.stream; no allocation but the first call's workspace.
/// Errors: Error{shape, dtype, unsupported, device}.
void gemm_cuda(const Exec& exec,
               const Gemm& g,
               const GemmBatch& batch = {},
               const GemmCudaFactors& factors = {});

/// Bytes that the products hold for cuBLASLt beside plans and slots.
int64_t gemm_cuda_workspace_bytes();

}  // namespace tightloop
