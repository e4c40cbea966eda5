#pragma once

#include "tightloop/ops/sum_squares/sum_squares.h"

namespace tightloop {

constexpr int64_t kSumSquaresBlocks = 256;       // fixed, so bits repeat
constexpr int64_t kSumSquaresCudaBlocks = 1024;  // at most; fewer for small tensors

void sum_squares_ref(const SumSquares& args);
/// scratch: kSumSquaresBlocks doubles.
void sum_squares_cpu(const SumSquares& args, double* scratch);
/// exec.scratch: kSumSquaresCudaBlocks doubles.
void sum_squares_cuda(const Exec& exec, const SumSquares& args);

}  // namespace tightloop
