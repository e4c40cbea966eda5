#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Elementary operations: sums, products, copies and constants. Reductions accumulate in float64
/// over fixed blocks, so their bits do not depend on the thread count.

/// z = x + y, equal shapes.
Value add(Builder& b, Value x, Value y);
/// z = x * y element by element, equal shapes.
Value mul(Builder& b, Value x, Value y);
/// Sum of all elements, a scalar of x's dtype.
Value sum(Builder& b, Value x);
/// x under another shape with as many elements. No work, no memory.
Value reshape(Builder& b, Value x, const Shape& shape);
/// x stored as another float dtype (round to nearest even). The identity on the reference device.
Value cast(Builder& b, Value x, DType dtype);
/// slot = x, or slot += x.
void store(Builder& b, Value x, Value slot, bool accumulate);
/// Every element of the slot = value.
void fill(Builder& b, Value slot, double value);

}  // namespace tightloop
