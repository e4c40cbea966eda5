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

/// exec.scratch: LinearCrossEntropyCudaScratch.
void linear_cross_entropy_fwd_cuda(const Exec& exec, const LinearCrossEntropyFwd& args);
void linear_cross_entropy_grad_cuda(const Exec& exec, const LinearCrossEntropyGrad& args);

/// Largest cap that may stand in for a row's maximum: e^(-2 cap) must stay far from underflow.
constexpr double kMostOffsetCap{30};

/// On cuda: one chunk's logits, then, each where it is needed, a factor for each of its rows, its
/// rows of x times those, and w converted to the type of x.
/// Of bf16 operands the logits of the gradient pass are bf16, because the products that follow take
/// their gradient in bf16 and in the same place, at 4 or 6 bytes of traffic a logit and not 10;
/// those of the forward pass, which evaluations use, are f32.
struct LinearCrossEntropyCudaScratch {
  int64_t chunk;   // rows
  bool by_offset;  // the cap stands in for the maximum, and rows of x and dx take the factors
  DType logits;
  int64_t ld;  // rows of logits start at multiples of 16 bytes
  int64_t logits_bytes, factor_bytes, x_bytes, w_bytes;

  LinearCrossEntropyCudaScratch(
      LinearCrossEntropyPass pass, const Type& x, const Type& w, double cap, int64_t chunk_rows);
  int64_t bytes() const { return logits_bytes + factor_bytes + x_bytes + w_bytes; }
};

}  // namespace tightloop
