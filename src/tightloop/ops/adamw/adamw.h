#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// One AdamW step, in place. With hyper = [lr, beta1, beta2, eps, decay, bias1, bias2, unused],
/// bias_i = 1 - beta_i^t:
///   p <- p (1 - lr decay);  m <- m + (1-beta1)(g - m);  v <- v + (1-beta2)(g^2 - v);
///   p <- p - (lr / bias1) m / (sqrt(v / bias2) + eps).
/// Shapes: g, p, m, v equal; hyper (8).
/// Types:  g, hyper f32; p, m, v all f32 or all bf16; f32 arithmetic, each rounded once when
/// stored. Memory: f32 reads 16 and writes 12 bytes an element. Source: Loshchilov and Hutter 2017,
/// arXiv:1711.05101.
struct Adamw {
  ConstTensorView g, hyper;
  TensorView p, m, v;
};
void adamw(const Exec& exec, const Adamw& args);

/// Emits one step that updates the slots p, m and v.
void adamw(Builder& b, Value g, Value hyper, Value p, Value m, Value v);

}  // namespace tightloop
