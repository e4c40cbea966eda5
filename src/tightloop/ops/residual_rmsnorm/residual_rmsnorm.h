#pragma once

#include "tightloop/ops/common/scaled_term.h"
#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Residual addition, learned scaling and RMS normalisation in one pass over the rows:
///   s = x (+ y (+ u)),   t = fa*s + fb*z (t = s without z),   fa = ca * a[ia], fb = cb * b[ib],
///   h = scale * t * rstd,   rstd[r] = 1 / sqrt(mean_c(t[r,c]^2) + eps).
/// Shapes: x, y, u, z, s, t, h (..., cols); a (La), b (Lb); rstd (rows). y, u, z, a, b may be
/// empty;
///         s is stored when there are both y and z, t when there is either; t may be left out where
///         there is no z.
/// Types:  f32 (on cuda also bf16; a, b and rstd f32 always) with f32 sums in a fixed order;
///         float64 on the reference device. On the CPU s, t, h and rstd have the bits that add,
///         scaled_add and rmsnorm one after the other give. On cuda t and h are made of unrounded
///         sums, so in bf16 they are nearer to the truth than those three (rows that do not fit
///         registers, beyond 8,192 columns, take t as stored for h, where it is stored).
/// Memory: s may alias x or y, t may alias x, y or z. Each row is read once and written once.
/// Errors: Error{shape, dtype}.
struct ResidualRmsnormFwd {
  ConstTensorView x, y, u, z, a, b;
  TensorView s, t, h, rstd;
  double ca = 1.0, cb = 1.0;
  int64_t ia = 0, ib = 0;
  double eps;
  double scale = 1.0;
};
void residual_rmsnorm_fwd(const Exec& exec, const ResidualRmsnormFwd& args);

/// Backward:  dt = dt_in + rstd * scale * (dh - xhat * mean_c(dh * xhat)),  xhat = h / scale;
/// with z, ds = fa*dt, dz = dz_in + fb*dt, da[ia] += ca * sum(dt*s), db[ib] += cb * sum(dt*z);
/// without, ds = dt. (dx = dy = ds.)
/// dt_in and dz_in may be empty (0); s is given with da, z with db; dz is empty without scaling.
/// Memory: ds may alias dh, h or dt_in; dz may alias dz_in.
/// Types: da and db are summed in float64 over 64 fixed row blocks in scratch; on cuda rows are
///        summed in f32 and then all of them in float64.
struct ResidualRmsnormBwd {
  ConstTensorView dh, h, rstd, dt_in, s, z, a, b, dz_in;
  TensorView ds, dz, da, db;
  double ca = 1.0, cb = 1.0;
  int64_t ia = 0, ib = 0;
  double scale = 1.0;
};
void residual_rmsnorm_bwd(const Exec& exec, const ResidualRmsnormBwd& args);

struct ResidualRmsnormOptions {
  double eps;
  double scale = 1.0;
  Value u = {};          // needs y
  bool stores_t = true;  // false: without z only, and with y
};
struct ResidualRmsnormValues {
  Value s, t, h, rstd;  // s and t: the sums, which are x itself where nothing was added; empty
                        // where they are not stored
};
/// y and z may be empty; the factors are used with z only.
ResidualRmsnormValues residual_rmsnorm(Builder& builder,
                                       Value x,
                                       Value y,
                                       Value z,
                                       const ScaledTerm& a,
                                       const ScaledTerm& b,
                                       const ResidualRmsnormOptions& options);

}  // namespace tightloop
