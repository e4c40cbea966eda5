#include <algorithm>
#include <numeric>

#include "tightloop/ops/embedding/embedding_kernels.h"

namespace tightloop {

void embedding_fwd_ref(const EmbeddingFwd& a) {
  const int64_t cols = a.table.shape().cols();
  for (int64_t n = 0; n < a.tokens.elems(); ++n) {
    const double* row = a.table.as<double>() + a.tokens.as<int32_t>()[n] * cols;
    std::copy(row, row + cols, a.y.as<double>() + n * cols);
  }
}

void token_order_ref(const TokenOrder& a) {
  const int32_t* tokens = a.tokens.as<int32_t>();
  int32_t* order = a.order.as<int32_t>();
  std::iota(order, order + a.tokens.elems(), 0);
  std::stable_sort(order, order + a.tokens.elems(),
                   [tokens](int32_t i, int32_t j) { return tokens[i] < tokens[j]; });
}

void embedding_bwd_ref(const EmbeddingBwd& a) {
  const int64_t cols = a.dtable.shape().cols();
  double* dtable = a.dtable.as<double>();
  if (!a.accumulate) std::fill(dtable, dtable + a.dtable.elems(), 0.0);
  for (int64_t n = 0; n < a.tokens.elems(); ++n) {
    double* row = dtable + a.tokens.as<int32_t>()[n] * cols;
    for (int64_t c = 0; c < cols; ++c) row[c] += a.dy.as<double>()[n * cols + c];
  }
}

}  // namespace tightloop
