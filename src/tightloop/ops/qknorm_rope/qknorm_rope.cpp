#include "tightloop/ops/qknorm_rope/qknorm_rope.h"

#include <algorithm>
#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/rotary.h"
#include "tightloop/ops/common/row.h"
#include "tightloop/ops/qknorm_rope/qknorm_rope_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

/// The heads of one token.
TL_CLONES void fwd_token(const float* x,
                         const float* cos_sin,
                         float* y,
                         float* rstd,
                         int64_t heads,
                         int64_t dim,
                         float eps,
                         float scale) {
  for (int64_t h = 0; h < heads; ++h, x += dim, y += dim) {
    rotate_head(x, cos_sin, y, dim / 2, 1.0f);
    const float mean = dot_row(y, y, dim) / static_cast<float>(dim);
    rstd[h] = 1.0f / __builtin_sqrtf(mean + eps);
    const float factor = rstd[h] * scale;
    for (int64_t d = 0; d < dim; ++d) y[d] *= factor;
  }
}

TL_CLONES void bwd_token(const float* dy,
                         const float* y,
                         const float* rstd,
                         const float* cos_sin,
                         float* dx,
                         int64_t heads,
                         int64_t dim,
                         float scale) {
  for (int64_t h = 0; h < heads; ++h, dy += dim, y += dim, dx += dim) {
    // mean(g * xhat) = mean(dy * y).
    const float mean = dot_row(dy, y, dim) / static_cast<float>(dim);
    const float a = rstd[h] * scale, b = rstd[h] * mean / scale;
    TL_IVDEP
    for (int64_t d = 0; d < dim; ++d) dx[d] = a * dy[d] - b * y[d];
    rotate_head(dx, cos_sin, dx, dim / 2, -1.0f);
  }
}

void fwd_token(const double* x,
               const double* cos_sin,
               double* y,
               double* rstd,
               int64_t heads,
               int64_t dim,
               double eps,
               double scale) {
  for (int64_t h = 0; h < heads; ++h, x += dim, y += dim) {
    rotate_head(x, cos_sin, y, dim / 2, 1.0);
    double squares = 0.0;
    for (int64_t d = 0; d < dim; ++d) squares += y[d] * y[d];
    rstd[h] = 1.0 / std::sqrt(squares / static_cast<double>(dim) + eps);
    for (int64_t d = 0; d < dim; ++d) y[d] *= rstd[h] * scale;
  }
}

void bwd_token(const double* dy,
               const double* y,
               const double* rstd,
               const double* cos_sin,
               double* dx,
               int64_t heads,
               int64_t dim,
               double scale) {
  for (int64_t h = 0; h < heads; ++h, dy += dim, y += dim, dx += dim) {
    double mean = 0.0;
    for (int64_t d = 0; d < dim; ++d) mean += dy[d] * y[d];
    mean /= static_cast<double>(dim);
    for (int64_t d = 0; d < dim; ++d) dx[d] = rstd[h] * (scale * dy[d] - y[d] / scale * mean);
    rotate_head(dx, cos_sin, dx, dim / 2, -1.0);
  }
}

/// Calls fn(row, table row) for every token of x (B, T, H, D).
template <typename Fn>
void for_each_token(const Shape& x, int64_t pos, Fn&& fn) {
  const int64_t tokens = x[1];
  parallel_for(x[0] * tokens, grain_rows(x[2] * x[3]), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r, pos + r % tokens);
  });
}

template <typename T>
void fwd_all(const QknormRopeFwd& a, int64_t pos) {
  const int64_t heads = a.x.shape()[2], dim = a.x.shape()[3], row = heads * dim;
  const T *x = a.x.as<T>(), *table = a.table.as<T>();
  T *y = a.y.as<T>(), *rstd = a.rstd.as<T>();
  for_each_token(a.x.shape(), pos, [&](int64_t r, int64_t angle) {
    fwd_token(x + r * row, table + angle * dim, y + r * row, rstd + r * heads, heads, dim,
              static_cast<T>(a.eps), static_cast<T>(a.scale));
  });
}

template <typename T>
void bwd_all(const QknormRopeBwd& a, int64_t pos) {
  const int64_t heads = a.dy.shape()[2], dim = a.dy.shape()[3], row = heads * dim;
  const T *dy = a.dy.as<T>(), *y = a.y.as<T>(), *rstd = a.rstd.as<T>();
  const T* table = a.table.as<T>();
  T* dx = a.dx.as<T>();
  for_each_token(a.dy.shape(), pos, [&](int64_t r, int64_t angle) {
    bwd_token(dy + r * row, y + r * row, rstd + r * heads, table + angle * dim, dx + r * row, heads,
              dim, static_cast<T>(a.scale));
  });
}

std::optional<Type> optional_input(const OpTypes& t, size_t i) {
  return t.has_input(i) ? std::optional(t.input(i)) : std::nullopt;
}

// qknorm_rope: inputs (x, table, pos?) -> outputs (y, rstd). Attributes eps, scale.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  expect_rotary("qknorm_rope", x, t.input(1), optional_input(t, 2));
  return {x, {statistics_dtype(x.dtype), {x.shape.rows()}}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  qknorm_rope_fwd(exec, {.x = c.input(0),
                         .table = c.input(1),
                         .pos = c.input(2),
                         .y = c.outputs[0],
                         .rstd = c.outputs[1],
                         .eps = c.attrs.number("eps"),
                         .scale = c.attrs.number("scale")});
}

int64_t table_bytes(const Type& x) {
  return x.shape[1] * x.shape[3] * int64_t{sizeof(float)};
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  return {x.bytes() + table_bytes(x), x.bytes() + t.outputs[1].bytes(), 6 * x.elems()};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  if (ctx.output_grad(1))
    fail(ErrorKind::unsupported,
         "qknorm_rope: the gradient with respect to rstd is not implemented");
  if (!ctx.needs_grad(0)) return;
  ctx.add_grad(0, ctx.builder().emit1("qknorm_rope_bwd",
                                      {ctx.output_grad(0), op.outputs[0], op.outputs[1],
                                       op.inputs[1], op.inputs[2]},
                                      {{"scale", op.attrs.number("scale")}}));
}

// qknorm_rope_bwd: inputs (dy, y, rstd, table, pos?) -> (dx). Attribute scale.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  const Type& dy = t.input(0);
  expect_rotary("qknorm_rope_bwd", dy, t.input(3), optional_input(t, 4));
  expect_shape("qknorm_rope_bwd", "y", t.input(1), dy.shape);
  expect_dtype("qknorm_rope_bwd", "y", t.input(1), dy.dtype);
  expect_shape("qknorm_rope_bwd", "rstd", t.input(2), {dy.shape.rows()});
  expect_dtype("qknorm_rope_bwd", "rstd", t.input(2), statistics_dtype(dy.dtype));
  return {dy};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  qknorm_rope_bwd(exec, {.dy = c.input(0),
                         .y = c.input(1),
                         .rstd = c.input(2),
                         .table = c.input(3),
                         .pos = c.input(4),
                         .dx = c.outputs[0],
                         .scale = c.attrs.number("scale")});
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  const Type& dy = t.input(0);
  return {2 * dy.bytes() + t.input(2).bytes() + table_bytes(dy), dy.bytes(), 8 * dy.elems()};
}

const OpEntry kEntries[] = {
    {{.name = "qknorm_rope", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd, .inplace = {{0, 0}}},
     run_fwd},
    {{.name = "qknorm_rope_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}, {0, 1}}},
     run_bwd},
};

}  // namespace

void qknorm_rope_fwd(const Exec& exec, const QknormRopeFwd& a) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(qknorm_rope_fwd_cuda(exec, a));
  const int64_t pos = rotary_position("qknorm_rope", a.pos, a.table, a.x.shape()[1]);
  exec.device == Device::ref ? fwd_all<double>(a, pos) : fwd_all<float>(a, pos);
}

void qknorm_rope_bwd(const Exec& exec, const QknormRopeBwd& a) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(qknorm_rope_bwd_cuda(exec, a));
  const int64_t pos = rotary_position("qknorm_rope_bwd", a.pos, a.table, a.dy.shape()[1]);
  exec.device == Device::ref ? bwd_all<double>(a, pos) : bwd_all<float>(a, pos);
}

std::span<const OpEntry> qknorm_rope_ops() {
  return kEntries;
}

std::vector<Value> qknorm_rope(
    Builder& b, Value x, Value table, Value pos, double eps, double scale) {
  return b.emit("qknorm_rope", {x, table, pos}, {{"eps", eps}, {"scale", scale}});
}

}  // namespace tightloop
