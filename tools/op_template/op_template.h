#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

// The contract comes first: replace the formula (a scaled square) and its shapes by yours.

/// Scaled square, forward:  y[i] = scale * x[i]^2.
/// Shapes: x, y of one shape.
/// Types:  f32, on cuda also bf16; float64 on the reference device.
/// Memory: y may alias x. Moves 2 * elements.
/// Errors: Error{shape, dtype}.
struct OpTemplateFwd {
  ConstTensorView x;
  TensorView y;
  double scale = 1.0;
};
void op_template_fwd(const Exec& exec, const OpTemplateFwd& args);

/// Backward:  dx[i] = 2 * scale * x[i] * dy[i].  Memory: dx may alias dy.
struct OpTemplateBwd {
  ConstTensorView dy, x;
  TensorView dx;
  double scale = 1.0;
};
void op_template_bwd(const Exec& exec, const OpTemplateBwd& args);

/// y of OpTemplateFwd.
Value op_template(Builder& b, Value x, double scale = 1.0);

}  // namespace tightloop
