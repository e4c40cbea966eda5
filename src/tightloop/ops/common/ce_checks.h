#pragma once

#include "tightloop/ops/op_entry.h"

/// Checks that cross_entropy and linear_cross_entropy share.
namespace tightloop {

/// All dimensions but the last.
inline Shape rows_shape(const Shape& shape) {
  Shape rows;
  for (int i = 0; i + 1 < shape.rank(); ++i) rows.push_back(shape[i]);
  return rows;
}

inline void expect_vocab(std::string_view op, int64_t vocab, int64_t cols) {
  if (vocab < 1 || vocab > cols)
    fail(ErrorKind::shape, "{}: vocab is {}, expected 1..{} (the columns of the logits)", op, vocab,
         cols);
}

inline void check_targets(std::string_view op,
                          const ConstTensorView& targets,
                          int64_t vocab,
                          int64_t ignore_index) {
  const int32_t* t = targets.as<int32_t>();
  for (int64_t n = 0; n < targets.elems(); ++n) {
    if (t[n] != ignore_index && (t[n] < 0 || t[n] >= vocab))
      fail(ErrorKind::data, "{}: target {} at position {}, expected 0..{} or {} (ignored)", op,
           t[n], n, vocab - 1, ignore_index);
  }
}

}  // namespace tightloop
