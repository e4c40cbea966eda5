#pragma once

#include "tightloop/ops/common/scaled_term.h"
#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// Sum of two tensors with learned and fixed factors:
///   y = fa*x + fb*z,   fa = ca * a[ia] (ca without a),   fb = cb * b[ib] (cb without b).
/// Shapes: x, z, y equal; a (La), b (Lb), each may be empty.
/// Types:  f32 (on cuda also bf16; a and b f32 always); float64 on the reference device.
/// Memory: y may alias x or z. Moves 3 * elements.
/// Errors: Error{shape, dtype}; Error{shape} for an index outside its vector.
struct ScaledAddFwd {
  ConstTensorView x, z, a, b;
  TensorView y;
  double ca = 1.0, cb = 1.0;
  int64_t ia = 0, ib = 0;
};
void scaled_add_fwd(const Exec& exec, const ScaledAddFwd& args);

/// Backward: dx = fa*dy, dz = fb*dy, da[ia] += ca * sum(dy*x), db[ib] += cb * sum(dy*z).
/// da may be empty, and x with it; db and z likewise. dx may alias dy.
/// Types: the two sums over fixed blocks in scratch, so bits repeat: in float64 over 64, on cuda in
/// f32 over 1024, those added in float64.
struct ScaledAddBwd {
  ConstTensorView dy, x, z, a, b;
  TensorView dx, dz, da, db;
  double ca = 1.0, cb = 1.0;
  int64_t ia = 0, ib = 0;
};
void scaled_add_bwd(const Exec& exec, const ScaledAddBwd& args);

/// y = factor(a)*x + factor(b)*z.
Value scaled_add(Builder& builder, Value x, Value z, const ScaledTerm& a, const ScaledTerm& b);

}  // namespace tightloop
