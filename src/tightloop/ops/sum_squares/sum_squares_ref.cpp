#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {

void sum_squares_ref(const SumSquares& a) {
  const double* x = a.x.as<double>();
  double total = 0.0;
  for (int64_t i = 0; i < a.x.elems(); ++i) total += x[i] * x[i];
  *a.acc.as<double>() += total;
}

}  // namespace tightloop
