#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Rotary position embedding, halves paired: with a = x[..., j], b = x[..., D/2 + j] and the angle
/// of row pos + t, y = (a cos + b sin, -a sin + b cos). `inverse` flips the sign of sin.
/// Shapes: x, y (B, T, H, D), D even; table (S, D) from fill_rope_table; pos i32 scalar, empty for
/// 0. Types: f32 (on cuda x and y also bf16); float64 on the reference device. Memory: y may alias
/// x. Errors: Error{shape, dtype}; Error{usage} when pos + T rows are not in the table (unseen on
/// cuda: its last row then serves). Source: Su et al. 2021, arXiv:2104.09864.
struct Rope {
  ConstTensorView x, table, pos;
  TensorView y;
  bool inverse = false;
};
void rope_run(const Exec& exec, const Rope& args);

/// y of Rope; `pos` may be an empty Value. The gradient is the same rotation with `inverse`
/// toggled.
Value rope(Builder& b, Value x, Value table, Value pos = {}, bool inverse = false);

/// Fills table (S, D): [t, j] = cos(angle), [t, D/2 + j] = sin(angle), angle = t * theta^(-2j/D).
/// f32: the inverse frequency and the angle are rounded to float32, as a model trained in float32
/// sees them. f64: no rounding.
void fill_rope_table(const TensorView& table, double theta);

}  // namespace tightloop
