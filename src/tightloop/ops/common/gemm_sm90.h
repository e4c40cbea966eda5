#pragma once

#include "tightloop/ops/common/gemm_cuda.h"

namespace tightloop {

/// Whether gemm_sm90() does this product here: sm_90 and not --arch generic, bf16 throughout, forms
/// nt and nn, rows and matrices that start at multiples of 16 bytes, N and K multiples of 8, no
/// scaled operands, not accumulating. Gemm::symmetric: where B is A, form nt, without an epilogue
/// or with `add`.
bool gemm_sm90_takes(const Gemm& g, const GemmBatch& batch);

/// gemm_batched() by our own kernel for Hopper, the epilogue inside: C and e are touched once.
/// Computes: C = epilogue(product op(A) op(B)); with GemmEpilogue::add, e times `added` is added.
///           The epilogue sees the float32 sums; C is rounded once.
///           Gemm::symmetric: the tiles on and below the diagonal are computed, and those below
///           stored twice, so that C is exactly symmetric; e must be. C also gets `diagonal` times
///           the identity.
/// Order:    every element sums over K in ascending blocks of 16: the bits depend on nothing else.
/// Enqueued on exec.stream. Errors: Error{unsupported} where gemm_sm90_takes() is false.
void gemm_sm90(const Exec& exec,
               const Gemm& g,
               const GemmBatch& batch = {},
               const GemmCudaFactors& factors = {});

}  // namespace tightloop
