#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {

void sum_squares_ref(const ConstTensorView& tensor, const TensorView& acc) {
  const double* x = tensor.as<double>();
  double total = 0.0;
  for (int64_t i = 0; i < tensor.elems(); ++i) total += x[i] * x[i];
  *acc.as<double>() += total;
}

}  // namespace tightloop
