#pragma once

#include <span>
#include <vector>

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Most tensors of one sum_squares.
inline constexpr size_t kSumSquaresStack{128};

/// acc += sum of x^2 over all elements of all tensors x, on cuda in one launch and a small one.
/// Shapes: x any; acc a scalar slot.
/// Types:  x all f32 or all bf16 (float64 on the reference device); acc f64; squares and sums in
///         float64.
/// Memory: reads x once.
/// Order:  fixed blocks, added in a fixed order: same bits for any number of threads and any card.
/// Errors: Error{shape, dtype}.
struct SumSquares {
  std::span<const ConstTensorView> x;
  TensorView acc;
};
void sum_squares(const Exec& exec, const SumSquares& args);

/// Adds 1 to kSumSquaresStack tensors to `acc`, an f64 slot of shape ().
void sum_squares(Builder& b, std::vector<Value> x, Value acc);

}  // namespace tightloop
