#pragma once

#include "tightloop/ops/sum_squares/sum_squares.h"

namespace tightloop {

// Fixed, so bits repeat.
constexpr int64_t kSumSquaresBlocks = 256;
constexpr int64_t kSumSquaresPiece = 16384;  // elements of a tensor that a block of cuda sums

constexpr int64_t sum_squares_pieces(int64_t elems) {
  return (elems + kSumSquaresPiece - 1) / kSumSquaresPiece;
}

void sum_squares_ref(const ConstTensorView& x, const TensorView& acc);
/// scratch: kSumSquaresBlocks doubles.
void sum_squares_cpu(const ConstTensorView& x, const TensorView& acc, double* scratch);
/// exec.scratch: one double a piece.
void sum_squares_cuda(const Exec& exec, const SumSquares& args);

}  // namespace tightloop
