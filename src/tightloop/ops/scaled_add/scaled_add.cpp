#include "tightloop/ops/scaled_add/scaled_add.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/scaled_add/scaled_add_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void scaled_add_fwd(const Exec& exec, const ScaledAddFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(scaled_add_fwd_cuda(exec, args));
  exec.device == Device::ref ? scaled_add_fwd_ref(args) : scaled_add_fwd_cpu(args);
}

void scaled_add_bwd(const Exec& exec, const ScaledAddBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(scaled_add_bwd_cuda(exec, args));
  if (exec.device == Device::ref) return scaled_add_bwd_ref(args);
  scaled_add_bwd_cpu(args, reinterpret_cast<double*>(exec.scratch.data()));
}

Value scaled_add(Builder& builder, Value x, Value z, const ScaledTerm& a, const ScaledTerm& b) {
  return builder.emit1("scaled_add", {x, z, a.vector, b.vector},
                       {{"ca", a.constant}, {"cb", b.constant}, {"ia", a.index}, {"ib", b.index}});
}

namespace {

// scaled_add: inputs (x, z, a?, b?) -> (y). Attributes ca, cb, ia, ib.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  const Type& x = t.input(0);
  expect_float("scaled_add", "x", x);
  expect_shape("scaled_add", "z", t.input(1), x.shape);
  expect_dtype("scaled_add", "z", t.input(1), x.dtype);
  if (t.has_input(2)) expect_factor("scaled_add", "a", t.input(2), "ia", attrs.integer("ia"));
  if (t.has_input(3)) expect_factor("scaled_add", "b", t.input(3), "ib", attrs.integer("ib"));
  return {x};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  scaled_add_fwd(exec, {.x = c.input(0),
                        .z = c.input(1),
                        .a = c.input(2),
                        .b = c.input(3),
                        .y = c.outputs[0],
                        .ca = c.attrs.number("ca"),
                        .cb = c.attrs.number("cb"),
                        .ia = c.attrs.integer("ia"),
                        .ib = c.attrs.integer("ib")});
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes();
  return {2 * bytes, bytes, 3 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  const Op op = ctx.op();
  const bool wants_a = ctx.needs_grad(2), wants_b = ctx.needs_grad(3);
  const Value da = wants_a ? ctx.parameter_grad_to_add(2) : Value{};
  const Value db = wants_b ? ctx.parameter_grad_to_add(3) : Value{};
  const std::vector<Value> grads =
      ctx.builder().emit("scaled_add_bwd",
                         {ctx.output_grad(0), wants_a ? op.inputs[0] : Value{},
                          wants_b ? op.inputs[1] : Value{}, op.inputs[2], op.inputs[3]},
                         op.attrs, {da, db});
  if (ctx.needs_grad(0)) ctx.add_grad(0, grads[0]);
  if (ctx.needs_grad(1)) ctx.add_grad(1, grads[1]);
}

// scaled_add_bwd: inputs (dy, x?, z?, a?, b?) -> (dx, dz), updates (da?, db?). x is given when da
// is, z when db is.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs& attrs) {
  const Type& dy = t.input(0);
  expect_float("scaled_add_bwd", "dy", dy);
  for (const size_t side : {size_t{0}, size_t{1}}) {
    const std::string_view tensor = side == 0 ? "x" : "z", vector = side == 0 ? "a" : "b";
    if (t.has_input(1 + side)) {
      expect_shape("scaled_add_bwd", tensor, t.input(1 + side), dy.shape);
      expect_dtype("scaled_add_bwd", tensor, t.input(1 + side), dy.dtype);
    }
    if (t.has_input(3 + side))
      expect_factor("scaled_add_bwd", vector, t.input(3 + side), side == 0 ? "ia" : "ib",
                    attrs.integer(side == 0 ? "ia" : "ib"));
    if (!t.has_update(side)) continue;
    if (!t.has_input(1 + side) || !t.has_input(3 + side))
      fail(ErrorKind::shape, "scaled_add_bwd: d{} needs {} and {}", vector, tensor, vector);
    expect_shape("scaled_add_bwd", side == 0 ? "da" : "db", t.update(side),
                 t.input(3 + side).shape);
  }
  return {dy, dy};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  scaled_add_bwd(exec, {.dy = c.input(0),
                        .x = c.input(1),
                        .z = c.input(2),
                        .a = c.input(3),
                        .b = c.input(4),
                        .dx = c.outputs[0],
                        .dz = c.outputs[1],
                        .da = c.update(0),
                        .db = c.update(1),
                        .ca = c.attrs.number("ca"),
                        .cb = c.attrs.number("cb"),
                        .ia = c.attrs.integer("ia"),
                        .ib = c.attrs.integer("ib")});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  return t.has_update(0) || t.has_update(1) ? 2 * kScaledAddBlocks * int64_t{sizeof(double)} : 0;
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs&) {
  return t.has_update(0) || t.has_update(1) ? 2 * kScaledAddCudaBlocks * int64_t{sizeof(float)} : 0;
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes(), sums = t.has_update(0) + t.has_update(1);
  return {(1 + sums) * bytes, 2 * bytes, (2 + 2 * sums) * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "scaled_add",
      .infer = infer_fwd,
      .vjp = vjp,
      .cost = cost_fwd,
      .inplace = {{0, 0}, {0, 1}}},
     run_fwd},
    {{.name = "scaled_add_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}}},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
};

}  // namespace

std::span<const OpEntry> scaled_add_ops() {
  return kEntries;
}

}  // namespace tightloop
