#pragma once

#include <span>
#include <vector>

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
  /// What the iterate and its products are stored as on cuda, f32 or bf16; f32 on the CPU.
  DType dtype = DType::f32;
};

/// Most matrices of one polar_express.
inline constexpr size_t kPolarStack{64};

/// Approximates the orthogonal polar factors of matrices u, all (m, n): singular values in
/// 0.01..0.98 of the scaled input end in 0.8589..1.1411, singular vectors stay. For each:
///   equilibrate:  row r <- row r * (|X|_F / sqrt(m)) / max(|row r|, 1e-6)
///   scale:        X <- X / (norm_factor |X|_F + 1e-6)
///   k = 1..steps: X <- a_k X + (b_k A + c_k A^2) X with A = X X^T, or for m > n
///                 X <- a_k X + X (b_k A + c_k A^2) with A = X^T X
///   renormalize:  X <- X sqrt(min(m, n)) / max(|X|_F, 1e-6)
/// On cuda every product is one launch for all matrices; elsewhere they are taken one by one.
/// Types:  u and x f32; norms in float64; the steps as PolarExpressOptions::dtype says, with f32
///         sums.
/// Memory: x of a matrix may be its u. Scratch: on the CPU one more matrix and two of min(m, n)^2;
///         on cuda two matrices and two of min(m, n)^2 for each u.
/// Source: Amsel et al. 2025, arXiv:2505.16932.
struct PolarExpress {
  std::span<const ConstTensorView> u;
  std::span<const TensorView> x;
  PolarExpressOptions options;
};
void polar_express(const Exec& exec, const PolarExpress& args);

/// The factors of 1 to kPolarStack matrices of one shape.
std::vector<Value> polar_express(Builder& b,
                                 std::vector<Value> u,
                                 const PolarExpressOptions& options = {});

}  // namespace tightloop
