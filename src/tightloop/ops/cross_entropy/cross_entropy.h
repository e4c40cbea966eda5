#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Cross-entropy per row:  lse[n] = log(sum over c < vocab of exp(logits[n,c])),
///   loss[n] = weights[n] * (lse[n] - logits[n, targets[n]]),  0 where targets[n] = ignore_index.
/// Shapes: logits (..., Vp), columns from vocab on are padding of any value; targets, weights
///         (empty for 1), loss, lse (...).
/// Types:  f32, on cuda logits and dlogits also bf16; float64 on the reference device; targets i32;
///         sums in f32 in a fixed order.
/// Memory: moves the logits once; a row is read a second time while it is in cache.
/// Errors: Error{shape, dtype}; Error{data} for a target that is neither ignore_index nor
///         0..vocab-1; on cuda, where nobody looks, it makes its loss NaN.
struct CrossEntropyFwd {
  ConstTensorView logits, targets, weights;
  TensorView loss, lse;
  int64_t vocab;
  int64_t ignore_index;
};
void cross_entropy_fwd(const Exec& exec, const CrossEntropyFwd& args);

/// Backward: dlogits[n,c] = dloss[n] * weights[n] * (exp(logits[n,c] - lse[n]) - [c = targets[n]]);
/// 0 in ignored rows and in padding. dlogits may alias logits.
struct CrossEntropyBwd {
  ConstTensorView dloss, logits, targets, lse, weights;
  TensorView dlogits;
  int64_t vocab;
  int64_t ignore_index;
};
void cross_entropy_bwd(const Exec& exec, const CrossEntropyBwd& args);

struct CrossEntropyOptions {
  int64_t vocab;
  int64_t ignore_index = -1;
};
struct CrossEntropyValues {
  Value loss, lse;
};
/// `weights` may be an empty Value. Gradients flow from loss to logits only.
CrossEntropyValues cross_entropy(
    Builder& b, Value logits, Value targets, Value weights, const CrossEntropyOptions& options);

}  // namespace tightloop
