#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// y = silu(gate) * up with silu(g) = g * s, s = 1 / (1 + e^-g). Backward:
///   dup = dy * g * s,   dgate = dy * up * s * (1 + g * (1 - s)).
/// Shapes: all equal. Types: f32 (on cuda also bf16).
/// Memory: y may alias gate or up; dgate may alias dy or gate, dup dy or up.
/// Operations: swiglu (gate, up) -> (y); swiglu_bwd (dy, gate, up) -> (dgate, dup).
/// Source: Shazeer 2020, arXiv:2002.05202.
Value swiglu(Builder& b, Value gate, Value up);

}  // namespace tightloop
