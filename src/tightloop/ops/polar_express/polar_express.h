#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// What nanochat's recipes vary.
struct PolarExpressOptions {
  int64_t steps = 5;  // 1 to 5
  double norm_factor = 1.01;
  /// First give every row the same norm ("MuonEq").
  bool row_equilibrate = true;
  /// Last scale to the Frobenius norm of an orthogonal matrix, sqrt(min(m, n)) ("Muon+").
  bool renormalize = true;
};

/// Approximates the orthogonal polar factor of a matrix u (m, n): singular values in 0.01..0.98 of
/// the scaled input end in 0.8589..1.1411, singular vectors stay.
///   equilibrate:  row r <- row r * (|X|_F / sqrt(m)) / max(|row r|, 1e-6)
///   scale:        X <- X / (norm_factor |X|_F + 1e-6)
///   k = 1..steps: X <- (a_k + b_k A + c_k A^2) X with A = X X^T, or for m > n
///                 X <- X (a_k + b_k A + c_k A^2) with A = X^T X
///   renormalize:  X <- X sqrt(min(m, n)) / max(|X|_F, 1e-6)
/// Types:  f32 with f32 products; norms in float64.
/// Memory: x must not be u. Scratch: one more matrix and two of min(m, n)^2.
/// Source: Amsel et al. 2025, arXiv:2505.16932.
struct PolarExpress {
  ConstTensorView u;
  TensorView x;
  PolarExpressOptions options;
};
void polar_express(const Exec& exec, const PolarExpress& args);

Value polar_express(Builder& b, Value u, const PolarExpressOptions& options = {});

}  // namespace tightloop
