#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// acc += sum of x^2 over all elements.
/// Shapes: x any; acc a scalar slot.
/// Types:  x f32 or bf16 (float64 on the reference device); acc f64; squares and sums in float64.
/// Memory: reads x once.
/// Order:  fixed blocks, added in a fixed order: same bits for any number of threads and any card.
/// Errors: Error{shape, dtype}.
struct SumSquares {
  ConstTensorView x;
  TensorView acc;
};
void sum_squares(const Exec& exec, const SumSquares& args);

/// Adds to `acc`, an f64 slot of shape ().
void sum_squares(Builder& b, Value x, Value acc);

}  // namespace tightloop
