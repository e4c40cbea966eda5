#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// The first and the last part of a Muon step for one matrix; polar_express is between them.
/// hyper = [lr, momentum, beta2, decay, unused x 4], f32 (8).

/// Momentum with look-ahead: M <- mu M + (1-mu) g, then u = (1-mu) g + mu M.
/// Shapes: g, M, u (m, n). Types: f32. Memory: u may be g. Reads 8, writes 8 bytes an element.
/// Source: Jordan et al. 2024, Muon.
struct MuonMomentum {
  ConstTensorView g, hyper;
  TensorView momentum, u;
};
void muon_momentum(const Exec& exec, const MuonMomentum& args);

/// Variance reduction, effective rate and cautious decay. v is the mean of x^2 along rows when
/// m >= n, else along columns (r elements each):
///   S <- S + (1-beta2)(v - S);  w = 1 / sqrt(max(S, 1e-10));
///   c = sqrt(r sum v) / max(sqrt(r sum v w^2), 1e-10), which keeps the Frobenius norm;
///   e = lr sqrt(max(1, m/n));  p <- p - e (x w c) - e decay p [x p >= 0].
/// Shapes: x, p (m, n); S (m, 1) when m >= n, else (1, n). Types: f32, sums in float64 in a fixed
/// order. Scratch: one double and one float per element of S.
/// Sources: NorMuon arXiv:2510.05491; cautious decay arXiv:2510.12402.
struct MuonUpdate {
  ConstTensorView x, hyper;
  TensorView p, second_moment;
};
void muon_update(const Exec& exec, const MuonUpdate& args);

/// Shape of S for a parameter of this shape. Error{shape} when it is not a matrix.
Shape muon_second_moment_shape(const Shape& parameter);

/// Emits the momentum update and returns u.
Value muon_momentum(Builder& b, Value g, Value hyper, Value momentum);
/// Emits the update of p and S.
void muon_update(Builder& b, Value x, Value hyper, Value p, Value second_moment);

}  // namespace tightloop
