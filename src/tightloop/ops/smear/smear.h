#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Mixes each token's predecessor into it:
///   y[b,t] = x[b,t] + gate[b,t] * x[b,t-1],   gate[b,t] = lambda * sigmoid(w . x[b,t,0:m]),  t >=
///   1; y[b,0] = x[b,0]. The right side uses x, never y.
/// Shapes: x, y (B, T, C); w (1, m), m <= C; lambda (1).
/// Types:  f32; float64 on the reference device; on cuda x and y, and w on its own, also bf16.
/// Memory: y must not alias x. Moves 2 * elements.
/// Errors: Error{shape, dtype}.
struct SmearFwd {
  ConstTensorView x, w, lambda;
  TensorView y;
};
void smear_fwd(const Exec& exec, const SmearFwd& args);

/// Backward, with s = sigmoid(w . x[b,t,0:m]), p = sum_c dy[b,t,c] * x[b,t-1,c] and
/// q = lambda * s * (1 - s) * p, for t >= 1:
///   dx[b,t,c] = dy[b,t,c] + gate[b,t+1] * dy[b,t+1,c] + [c < m] * q * w[c],
///   dw[c] += sum q * x[b,t,c],   dlambda += sum s * p.
/// dw and dlambda may be empty; both are summed in float64 over 64 fixed row blocks in scratch.
/// dx must not alias dy.
struct SmearBwd {
  ConstTensorView dy, x, w, lambda;
  TensorView dx, dw, dlambda;
};
void smear_bwd(const Exec& exec, const SmearBwd& args);

/// SmearFwd over a sequence that arrives in pieces: x holds the next Tc tokens, of which the first
/// is at position `pos`; its predecessor is prev (B, C), the last x of the piece before, or nothing
/// when pos is 0. prev then becomes the last x of this piece.
/// Shapes: x, y (B, Tc, C); pos i32 scalar. Errors: Error{data} when pos < 0.
struct SmearCached {
  ConstTensorView x, w, lambda, pos;
  TensorView prev, y;
};
void smear_cached(const Exec& exec, const SmearCached& args);

Value smear(Builder& b, Value x, Value w, Value lambda);
/// `prev` is a cache slot.
Value smear_cached(Builder& b, Value x, Value w, Value lambda, Value pos, Value prev);

}  // namespace tightloop
