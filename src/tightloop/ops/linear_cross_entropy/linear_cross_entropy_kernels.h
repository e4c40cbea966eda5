#pragma once

#include "tightloop/ops/common/gemm.h"
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

/// The two products of a chunk that only Hopper does in one pass (gemm_sm90.h).
///
/// x (rows, C), w (Vp, C) bf16: for each row and each 256 columns of w the sum of E over those
/// below vocab, in `sums` (rows, columns_of_sums(Vp)); and, unless f is null, f (rows, Vp; rows of
/// ld) = E dy/dz / 4 in bf16, zeros from vocab on. E and dy/dz are those of OffsetLogits
/// (ce_row.cuh).
struct SoftcapProduct {
  const void *x, *w;
  void* f;
  float* sums;
  int64_t rows, columns, padded, ld, vocab;
  float cap;
};
bool softcap_product_sm90_takes(const SoftcapProduct& args);
void softcap_product_sm90(const Exec& exec, const SoftcapProduct& args);
constexpr int64_t columns_of_sums(int64_t padded) {
  return (padded + 255) / 256;
}
/// gemm_sm90() of form nn with row i of the result times factors[i], zeros where that is 0.
void row_scaled_product_sm90(const Exec& exec, const Gemm& g, const float* factors);

/// On cuda: one chunk's logits, then, each where it is needed, a factor for each of its rows, its
/// rows of x times those, w converted to the type of x, and the sums of SoftcapProduct.
/// Of bf16 operands the logits of the gradient pass are bf16, because the products that follow take
/// their gradient in bf16 and in the same place, at 4 or 6 bytes of traffic a logit and not 10;
/// those of the forward pass, which evaluations use, are f32.
struct LinearCrossEntropyCudaScratch {
  int64_t chunk;   // rows
  bool by_offset;  // the cap stands in for the maximum, and rows of x and dx take the factors
  DType logits;
  int64_t ld;  // rows of logits start at multiples of 16 bytes
  int64_t logits_bytes, factor_bytes, x_bytes, w_bytes, sums_bytes;

  LinearCrossEntropyCudaScratch(
      LinearCrossEntropyPass pass, const Type& x, const Type& w, double cap, int64_t chunk_rows);
  int64_t bytes() const { return logits_bytes + factor_bytes + x_bytes + w_bytes + sums_bytes; }
};

}  // namespace tightloop
