#pragma once

#include "tightloop/ops/sum_squares/sum_squares.h"

namespace tightloop {

constexpr int64_t kSumSquaresBlocks = 256;  // fixed, so bits repeat

void sum_squares_ref(const SumSquares& args);
/// scratch: kSumSquaresBlocks doubles.
void sum_squares_cpu(const SumSquares& args, double* scratch);

}  // namespace tightloop
