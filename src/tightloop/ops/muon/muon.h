#pragma once

#include <span>
#include <vector>

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// The first and the last part of a Muon step for matrices of one shape; polar_express is between
/// them. Each matrix is treated alone; on cuda one launch takes all of them.
/// hyper = [lr, momentum, beta2, decay, unused x 4], f32 (8).

/// Most matrices of one call.
inline constexpr size_t kMuonStack{64};

/// Momentum with look-ahead: M <- mu M + (1-mu) g, then u = (1-mu) g + mu M.
/// Shapes: g, M, u (m, n). Types: f32. Memory: u may be g. Reads 8, writes 8 bytes an element.
/// Source: Jordan et al. 2024, Muon.
struct MuonMomentum {
  std::span<const ConstTensorView> g;
  ConstTensorView hyper;
  std::span<const TensorView> momentum, u;
};
void muon_momentum(const Exec& exec, const MuonMomentum& args);

/// Variance reduction, effective rate and cautious decay. v is the mean of x^2 along rows when
/// m >= n, else along columns (r elements each):
///   S <- S + (1-beta2)(v - S);  w = 1 / sqrt(max(S, 1e-10));
///   c = sqrt(r sum v) / max(sqrt(r sum v w^2), 1e-10), which keeps the Frobenius norm;
///   e = lr sqrt(max(1, m/n));  p <- p - e (x w c) - e decay p [x p >= 0].
/// Shapes: x, p (m, n); S (m, 1) when m >= n, else (1, n). Types: f32, sums in float64 in a fixed
/// order. Scratch: on the CPU one double and one float per element of S.
/// Sources: NorMuon arXiv:2510.05491; cautious decay arXiv:2510.12402.
struct MuonUpdate {
  std::span<const ConstTensorView> x;
  ConstTensorView hyper;
  std::span<const TensorView> p, second_moment;
};
void muon_update(const Exec& exec, const MuonUpdate& args);

/// Shape of S for a parameter of this shape. Error{shape} when it is not a matrix.
Shape muon_second_moment_shape(const Shape& parameter);

/// Emits the momentum updates of 1 to kMuonStack matrices of one shape and returns each one's u.
std::vector<Value> muon_momentum(Builder& b,
                                 std::vector<Value> g,
                                 Value hyper,
                                 std::vector<Value> momentum);
/// Emits the updates of each p and its S.
void muon_update(Builder& b,
                 std::vector<Value> x,
                 Value hyper,
                 std::vector<Value> p,
                 const std::vector<Value>& second_moment);

}  // namespace tightloop
