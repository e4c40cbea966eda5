#include <algorithm>
#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/embedding/embedding_kernels.h"

namespace tightloop {
namespace {

TL_CLONES void widen_row(const bf16* x, float* y, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) y[c] = to_float(x[c]);
}

/// row (+)= the sum of dy's rows at `count` positions, in their order.
TL_CLONES void sum_rows(
    const float* dy, const int32_t* positions, int64_t count, float* row, int64_t cols, bool add) {
  for (int64_t i = 0; i < count; ++i) {
    const float* from = dy + positions[i] * cols;
    if (i == 0 && !add) {
      for (int64_t c = 0; c < cols; ++c) row[c] = from[c];
    } else {
      for (int64_t c = 0; c < cols; ++c) row[c] += from[c];
    }
  }
}

/// Afterwards token v has the sorted positions first[v] .. first[v + 1] - 1.
void count_tokens(const ConstTensorView& tokens, int64_t vocab, int32_t* first) {
  const int32_t* token = tokens.as<int32_t>();
  std::fill(first, first + vocab + 1, 0);
  for (int64_t n = 0; n < tokens.elems(); ++n) ++first[token[n] + 1];
  for (int64_t v = 0; v < vocab; ++v) first[v + 1] += first[v];
}

}  // namespace

void token_order_cpu(const TokenOrder& a, int32_t* scratch) {
  const int32_t* tokens = a.tokens.as<int32_t>();
  int32_t* order = a.order.as<int32_t>();
  count_tokens(a.tokens, a.vocab, scratch);
  for (int64_t n = 0; n < a.tokens.elems(); ++n)
    order[scratch[tokens[n]]++] = static_cast<int32_t>(n);
}

void embedding_fwd_cpu(const EmbeddingFwd& a) {
  const int64_t cols = a.table.shape().cols();
  const int32_t* tokens = a.tokens.as<int32_t>();
  float* y = a.y.as<float>();
  const bool narrow = a.table.dtype() == DType::bf16;
  parallel_for(a.tokens.elems(), grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      if (narrow) {
        widen_row(a.table.as<bf16>() + tokens[n] * cols, y + n * cols, cols);
      } else {
        std::memcpy(y + n * cols, a.table.as<float>() + tokens[n] * cols,
                    static_cast<size_t>(cols) * sizeof(float));
      }
    }
  });
}

void embedding_bwd_cpu(const EmbeddingBwd& a, int32_t* scratch) {
  const int64_t vocab = a.dtable.shape()[0], cols = a.dtable.shape().cols();
  const int64_t count = a.tokens.elems();
  const int32_t* positions = a.order.as<int32_t>();
  const float* dy = a.dy.as<float>();
  float* dtable = a.dtable.as<float>();

  int32_t* first = scratch;
  count_tokens(a.tokens, vocab, first);

  // Work is split by rows of the table plus tokens, so that frequent tokens do not pile up.
  const int64_t work = vocab + count;
  const auto row_at = [&](int64_t done) {
    int64_t low = 0, high = vocab;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (middle + first[middle] < done) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  parallel_for(work, grain_rows(cols), [&](int64_t begin, int64_t end) {
    const int64_t stop = end == work ? vocab : row_at(end);
    for (int64_t v = row_at(begin); v < stop; ++v) {
      float* row = dtable + v * cols;
      const int64_t here = first[v + 1] - first[v];
      if (here > 0) {
        sum_rows(dy, positions + first[v], here, row, cols, a.accumulate);
      } else if (!a.accumulate) {
        std::fill(row, row + cols, 0.0f);
      }
    }
  });
}

}  // namespace tightloop
