#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Linear layer without bias: y = x w^T, and its two gradients. Leading dimensions of x are rows.
/// Shapes: x (..., K), w (N, K), y (..., N).
/// Types:  x, y f32; w f32 or bf16; products and sums in f32 (float64 on the reference device).
/// Order:  every element sums in an order fixed by the shapes: same bits for any number of threads.
Value linear(Builder& b, Value x, Value w);

/// The same with y in f32 whatever the type of x: the sums are not rounded. Its gradient is rounded
/// to the type of x before the products that it goes into.
Value linear_f32(Builder& b, Value x, Value w);

/// With relu2 written into the product while it is in cache: y = max(x w^T, 0)^2. The rewrite of
/// linear + relu2; its gradient is a rewrite of the unfused backward.
///
/// Other operations of this folder, emitted by gradients and rewrites:
///   linear_dx        (dy, w, dx_in?) -> dx = dx_in + dy w
///   linear_dw        (dy, x), updates dw: dw = dy^T x, or += with attribute accumulate
///   linear_dx_relu2  (dy, w, y) -> (dy w) * 2 sqrt(y), the gradient before the relu2 that made y
Value linear_relu2(Builder& b, Value x, Value w);

}  // namespace tightloop
