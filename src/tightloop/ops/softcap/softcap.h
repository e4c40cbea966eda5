#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// y = cap * tanh(x / cap) element by element; backward from the output: dx = dy * (1 - (y/cap)^2).
/// Shapes: all equal. Types: f32 (on cuda also bf16). Memory: y may alias x; dx may alias dy or y.
/// Operations: softcap (x) -> (y); softcap_bwd (dy, y) -> (dx). Attribute cap > 0.
/// Errors: Error{usage} when cap is not positive. Source: Gemma 2, arXiv:2408.00118.
Value softcap(Builder& b, Value x, double cap);

}  // namespace tightloop
