#include "tightloop/ops/rope/rope.h"

#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/rotary.h"
#include "tightloop/ops/rope/rope_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

/// Rotates the heads of one token. y may be x.
TL_CLONES void rotate_heads(
    const float* x, const float* cos_sin, float* y, int64_t heads, int64_t half, float sign) {
  for (int64_t h = 0; h < heads; ++h)
    rotate_head(x + h * 2 * half, cos_sin, y + h * 2 * half, half, sign);
}
void rotate_heads(
    const double* x, const double* cos_sin, double* y, int64_t heads, int64_t half, double sign) {
  for (int64_t h = 0; h < heads; ++h)
    rotate_head(x + h * 2 * half, cos_sin, y + h * 2 * half, half, sign);
}

template <typename T>
void rotate_all(const Rope& a, int64_t pos) {
  const Shape& shape = a.x.shape();
  const int64_t tokens = shape[1], heads = shape[2], dim = shape[3], row = heads * dim;
  const T *x = a.x.as<T>(), *table = a.table.as<T>() + pos * dim;
  T* y = a.y.as<T>();
  const T sign = a.inverse ? T{-1} : T{1};
  parallel_for(
      shape[0] * tokens, std::max<int64_t>(1, 8192 / row), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          rotate_heads(x + r * row, table + r % tokens * dim, y + r * row, heads, dim / 2, sign);
      });
}

std::vector<Type> infer(const OpTypes& t, const Attrs& attrs) {
  expect_rotary("rope", t.input(0), t.input(1),
                t.has_input(2) ? std::optional(t.input(2)) : std::nullopt);
  attrs.flag("inverse");
  return {t.input(0)};
}

void run(const Exec& exec, const OpCall& c) {
  rope_run(exec, {.x = c.input(0),
                  .table = c.input(1),
                  .pos = c.input(2),
                  .y = c.outputs[0],
                  .inverse = c.attrs.flag("inverse")});
}

Cost cost(const OpTypes& t, const Attrs&) {
  const Shape& x = t.input(0).shape;
  const int64_t table_bytes = x[1] * x[3] * size_of(t.input(1).dtype);
  return {t.input(0).bytes() + table_bytes, t.input(0).bytes(), 3 * x.elems()};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  if (!ctx.needs_grad(0)) return;
  ctx.add_grad(0, rope(ctx.builder(), ctx.output_grad(0), op.inputs[1], op.inputs[2],
                       !op.attrs.flag("inverse")));
}

const OpEntry kEntries[] = {
    {{.name = "rope", .infer = infer, .vjp = vjp, .cost = cost, .inplace = {{0, 0}}}, run},
};

}  // namespace

void rope_run(const Exec& exec, const Rope& a) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(rope_cuda(exec, a));
  const int64_t pos = rotary_position("rope", a.pos, a.table, a.x.shape()[1]);
  exec.device == Device::ref ? rotate_all<double>(a, pos) : rotate_all<float>(a, pos);
}

void fill_rope_table(const TensorView& table, double theta) {
  const int64_t rows = table.shape()[0], dim = table.shape()[1], half = dim / 2;
  if (table.dtype() != DType::f64 && table.dtype() != DType::f32)
    fail(ErrorKind::dtype, "rope: table is {}, expected f32 or f64", name_of(table.dtype()));
  for (int64_t j = 0; j < half; ++j) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(dim));
    for (int64_t t = 0; t < rows; ++t) {
      if (table.dtype() == DType::f64) {
        const double angle = static_cast<double>(t) * frequency;
        table.as<double>()[t * dim + j] = std::cos(angle);
        table.as<double>()[t * dim + half + j] = std::sin(angle);
      } else {
        const float angle = static_cast<float>(t) * static_cast<float>(frequency);
        const auto exact = static_cast<double>(angle);
        table.as<float>()[t * dim + j] = static_cast<float>(std::cos(exact));
        table.as<float>()[t * dim + half + j] = static_cast<float>(std::sin(exact));
      }
    }
  }
}

std::span<const OpEntry> rope_ops() {
  return kEntries;
}

Value rope(Builder& b, Value x, Value table, Value pos, bool inverse) {
  return b.emit1("rope", {x, table, pos}, {{"inverse", inverse}});
}

}  // namespace tightloop
