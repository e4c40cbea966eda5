#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Output head, softcap and cross-entropy in one operation, by chunks of rows, so that the logits
/// never exist as a whole:
///   logits = x W^T, softcapped to cap * tanh(logits / cap) unless cap is 0; loss and lse as in
///   cross_entropy.
/// Shapes: x (..., C); w (Vp, C), rows from vocab on are padding; targets, weights (empty for 1),
///         loss, lse (...).
/// Types:  x f32, on cuda also bf16; loss, lse f32; w f32 or bf16; targets i32; sums in f32;
///         float64 on the reference device. On the CPU, for equal logits, loss and lse have the
///         bits of softcap and cross_entropy.
/// Memory: scratch of chunk_rows * Vp floats, and the matrix product's; on cuda also of w, when it
///         and x have different types.
/// Order:  same bits for any number of threads.
/// Errors: Error{shape, dtype}; Error{data} for a target that is neither ignore_index nor
///         0..vocab-1; on cuda, where nobody looks, it makes its loss NaN.
struct LinearCrossEntropyFwd {
  ConstTensorView x, w, targets, weights;
  TensorView loss, lse;
  int64_t vocab;
  int64_t ignore_index;
  double cap;
  int64_t chunk_rows;
};
void linear_cross_entropy_fwd(const Exec& exec, const LinearCrossEntropyFwd& args);

/// The same, with the gradient in the same sweep: each chunk's logits are overwritten by their own
/// gradient, from which dx = dlogits W and dw (+)= dlogits^T x follow before the next chunk.
/// Shapes: dloss (...): the gradient of the loss per row; dx as x; dw f32 (Vp, C), may be empty.
/// Types:  on cuda with x in bf16, the logits are rounded to bf16 and so is their gradient (the
///         forward operation keeps f32 logits); with a cap of at most 30 the gradient is stored
///         without its row's factor, which then multiplies the rows of x, rounded, and of dx,
///         rounded a second time. On sm_90 these logits are not stored: loss, lse and the gradient
///         are made of the products' float32 sums, and dx is rounded once.
/// Memory: dx may alias x. Scratch as above: one buffer serves logits and gradient; on cuda in bf16
///         also chunk_rows * C elements.
/// Order:  dw sums over the chunks in their order.
struct LinearCrossEntropyGrad {
  ConstTensorView x, w, targets, dloss, weights;
  TensorView loss, lse, dx, dw;
  int64_t vocab;
  int64_t ignore_index;
  double cap;
  int64_t chunk_rows;
  bool accumulate;
};
void linear_cross_entropy_grad(const Exec& exec, const LinearCrossEntropyGrad& args);

/// Where the product for dx, rows x width, runs: `clusters` at once, a tile of 256 x 256 each. 0:
/// no matter.
struct LinearCrossEntropyTurns {
  int64_t width = 0, clusters = 0;
};

/// Rows of a chunk whose logits, of logit_bytes each, fit into budget_bytes: a multiple of 8 that
/// splits `rows` into chunks as equal as possible; 8 when even those do not fit, `rows` when there
/// are fewer. With clusters, and more than one chunk: the multiple of 256 with the fewest turns of
/// tiles in all, where a chunk more counts as a fifth of a turn (it reads and writes dw).
int64_t linear_cross_entropy_chunk_rows(int64_t rows,
                                        int64_t padded_vocab,
                                        int64_t logit_bytes,
                                        int64_t budget_bytes,
                                        const LinearCrossEntropyTurns& turns = {});

struct LinearCrossEntropyOptions {
  int64_t vocab;
  int64_t ignore_index = -1;
  double cap = 0.0;
  int64_t chunk_rows;
};
struct LinearCrossEntropyValues {
  Value loss, lse;
};
/// `weights` may be an empty Value. Gradients flow from loss to x and w; its rule computes the
/// logits a second time (a rewrite that knows dloss beforehand emits linear_cross_entropy_grad).
LinearCrossEntropyValues linear_cross_entropy(Builder& b,
                                              Value x,
                                              Value w,
                                              Value targets,
                                              Value weights,
                                              const LinearCrossEntropyOptions& options);

}  // namespace tightloop
