#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// RMS normalisation, forward, over the last axis:
///   y[r,c] = scale * x[r,c] * rstd[r] * weight[c],   rstd[r] = 1 / sqrt(mean_c(x[r,c]^2) + eps).
/// Shapes: x, y (..., cols); weight (cols), empty for none; rstd (rows), rows = elements / cols.
/// Types:  f32 (on cuda also bf16) with f32 sums in a fixed order and rstd f32; float64 on the
///         reference device.
/// Memory: y may alias x. Moves 2*rows*cols elements and rows.
/// QK-norm is this operation on (B, T, H, D): one row per head.
/// Errors: Error{shape, dtype}. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
struct RmsnormFwd {
  ConstTensorView x, weight;
  TensorView y, rstd;
  double eps;
  double scale = 1.0;
};
void rmsnorm_fwd(const Exec& exec, const RmsnormFwd& args);

/// Backward. With xhat = x * rstd and g = scale * dy * weight:
///   dx = rstd * (g - xhat * mean_c(g * xhat)),   dweight[c] += sum_r scale * dy[r,c] * xhat[r,c].
/// `saved` is y when there is no weight (xhat = y / scale, so x need not be kept) and x when there
/// is. Memory: dx may alias dy. dweight accumulates; its partial sums over fixed row blocks (64, on
/// cuda up to 512) are in scratch.
struct RmsnormBwd {
  ConstTensorView dy, saved, rstd, weight;
  TensorView dx, dweight;
  double scale = 1.0;
};
void rmsnorm_bwd(const Exec& exec, const RmsnormBwd& args);

/// y of RmsnormFwd; `weight` may be an empty Value.
Value rmsnorm(Builder& b, Value x, Value weight, double eps, double scale = 1.0);

}  // namespace tightloop
