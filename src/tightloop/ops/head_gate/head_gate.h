#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// One gate per token and key/value head from the first m channels of h:
///   g[n,j] = kappa * sigmoid(sum over c < m of w[j,c] * h[n,c]).
/// Shapes: h (..., C); w (Hkv, m), m <= C; g (..., Hkv).
/// Types:  f32; float64 on the reference device; on cuda h and w may each be bf16, gates are f32.
/// Memory: reads m channels of each row.
/// Errors: Error{shape, dtype}; Error{usage} when kappa is 0.
struct HeadGateFwd {
  ConstTensorView h, w;
  TensorView g;
  double kappa;
};
void head_gate_fwd(const Exec& exec, const HeadGateFwd& args);

/// Backward, with ds = dg * g * (1 - g / kappa):
///   dh[n,c] = dh_in[n,c] + [c < m] * sum_j ds[n,j] * w[j,c],   dw[j,c] += sum_n ds[n,j] * h[n,c].
/// dh_in may be empty (zeros) and may be dh itself: then only m channels of each row are touched.
/// dw may be empty; its partial sums over 64 fixed row blocks are in scratch.
struct HeadGateBwd {
  ConstTensorView dg, g, h, w, dh_in;
  TensorView dh, dw;
  double kappa;
};
void head_gate_bwd(const Exec& exec, const HeadGateBwd& args);

/// y[n,j,:] = v[n,j,:] + g[n,j] * u[n,j,:].
/// Shapes: v, u, y (..., Hkv, D); g (..., Hkv). Types: as head_gate, with v, u and y alike. Memory:
/// y may alias v or u.
struct GatedAddFwd {
  ConstTensorView v, g, u;
  TensorView y;
};
void gated_add_fwd(const Exec& exec, const GatedAddFwd& args);

/// Backward: dg[n,j] = sum_d dy[n,j,d] * u[n,j,d], du = g * dy (and dv = dy, which needs no work).
/// du may alias dy or u.
struct GatedAddBwd {
  ConstTensorView dy, g, u;
  TensorView dg, du;
};
void gated_add_bwd(const Exec& exec, const GatedAddBwd& args);

Value head_gate(Builder& b, Value h, Value w, double kappa);
Value gated_add(Builder& b, Value v, Value g, Value u);

}  // namespace tightloop
