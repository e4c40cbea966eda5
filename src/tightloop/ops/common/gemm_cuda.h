#pragma once

#include "tightloop/core/exec.h"
#include "tightloop/ops/common/gemm.h"

namespace tightloop {

/// What a product and that which is added to it are multiplied by, and what is added to the
/// diagonal; of each matrix of a stack, what all of that is multiplied by (on the device; null: 1).
/// The last two only by gemm_sm90(), for symmetric products.
struct GemmCudaFactors {
  float product = 1.0f, added = 1.0f, diagonal = 0.0f;
  const float* of_matrix = nullptr;
};

/// gemm_batched() on device memory, through cuBLASLt: C = epilogue(op(A) op(B)), or C += op(A)
/// op(B). Types:  A and B both f32 (float32 arithmetic, no TF32) or both bf16 (tensor cores, f32
/// sums); C
///         and e f32 or bf16. An f32 C with bf16 operands is stored unrounded.
/// Order:  one algorithm per shape, chosen once a process (gemm_choices.h), never one that adds
/// parts
///         of a sum in C or in C's type; the same bits on every run.
/// Scales and a lower-half-only symmetric product are not offered here: the first is
/// Error{unsupported}, the second computes the whole product.
/// With factors, C = product op(A) op(B), plus added e for GemmEpilogue::add with e of C's type.
/// Enqueued on exec.stream; no allocation but the first call's workspace, and the operands on which
/// a first product of its shape is timed.
/// Errors: Error{shape, dtype, unsupported, device}.
void gemm_cuda(const Exec& exec,
               const Gemm& g,
               const GemmBatch& batch = {},
               const GemmCudaFactors& factors = {});

/// Bytes that the products hold for cuBLASLt beside plans and slots: what NVIDIA advises for
/// Hopper.
constexpr int64_t gemm_cuda_workspace_bytes() {
  return int64_t{32} << 20;
}

/// cublaslt_version() in a build with CUDA.
int64_t gemm_cuda_library_version();

}  // namespace tightloop
