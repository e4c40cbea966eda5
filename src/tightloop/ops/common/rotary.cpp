#include "tightloop/ops/common/rotary.h"

namespace tightloop {

void expect_rotary(std::string_view op,
                   const Type& x,
                   const Type& table,
                   const std::optional<Type>& pos) {
  expect_rank(op, "x", x, 4);
  expect_float(op, "x", x);
  expect_rank(op, "table", table, 2);
  expect_dtype(op, "table", table, DType::f32);
  if (x.shape[3] % 2 != 0)
    fail(ErrorKind::shape, "{}: head dimension is {}, expected an even number", op, x.shape[3]);
  if (table.shape[1] != x.shape[3] || table.shape[0] < x.shape[1])
    fail(ErrorKind::shape, "{}: table has shape {}, expected (at least {}, {})", op,
         to_string(table.shape), x.shape[1], x.shape[3]);
  if (pos) {
    expect_shape(op, "pos", *pos, {});
    expect_dtype(op, "pos", *pos, DType::i32);
  }
}

int64_t rotary_position(std::string_view op,
                        const ConstTensorView& pos,
                        const ConstTensorView& table,
                        int64_t tokens) {
  const int64_t first = pos.empty() ? 0 : *pos.as<int32_t>(), rows = table.shape()[0];
  if (first < 0 || first + tokens > rows)
    fail(ErrorKind::usage, "{}: positions {} to {} are not in a table of {} rows", op, first,
         first + tokens - 1, rows);
  return first;
}

}  // namespace tightloop
