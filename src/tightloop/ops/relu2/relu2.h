#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// y = max(x, 0)^2 element by element; backward dx = dy * 2 max(x, 0).
/// Shapes: all equal. Types: f32 (on cuda also bf16). Memory: y may alias x; dx may alias dy or x.
/// Operations: relu2 (x) -> (y); relu2_bwd (dy, x) -> (dx).
/// Source: So et al. 2021, arXiv:2109.08668.
Value relu2(Builder& b, Value x);

}  // namespace tightloop
