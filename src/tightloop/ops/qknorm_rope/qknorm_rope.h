#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Rotary embedding, then RMS normalisation of each head, in one pass:
///   r = rope(x),   rstd = 1 / sqrt(mean_d(r^2) + eps),   y = scale * r * rstd.
/// Shapes: x, y (B, T, H, D), D even; table (S, D) as for rope; pos i32 scalar, empty for 0; rstd
/// (B*T*H). Types: f32 (on cuda x and y also bf16), sums and rstd f32; float64 on the reference
/// device. Memory: y may alias x. Errors: Error{shape, dtype}; Error{usage} when pos + T rows are
/// not in the table (unseen on cuda: its last row then serves).
/// Source: nanochat's query/key norm; arXiv:2104.09864, arXiv:1910.07467.
struct QknormRopeFwd {
  ConstTensorView x, table, pos;
  TensorView y, rstd;
  double eps;
  double scale = 1.0;
};
void qknorm_rope_fwd(const Exec& exec, const QknormRopeFwd& args);

/// Backward from y alone. With xhat = y / scale and g = scale * dy:
///   dr = rstd * (g - xhat * mean_d(g * xhat)),   dx = rope back(dr).
/// Memory: dx may alias dy or y.
struct QknormRopeBwd {
  ConstTensorView dy, y, rstd, table, pos;
  TensorView dx;
  double scale = 1.0;
};
void qknorm_rope_bwd(const Exec& exec, const QknormRopeBwd& args);

/// {y, rstd} of QknormRopeFwd; `pos` may be an empty Value.
std::vector<Value> qknorm_rope(
    Builder& b, Value x, Value table, Value pos, double eps, double scale = 1.0);

}  // namespace tightloop
