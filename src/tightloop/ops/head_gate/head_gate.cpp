#include "tightloop/ops/head_gate/head_gate.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/head_gate/head_gate_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void head_gate_fwd(const Exec& exec, const HeadGateFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(head_gate_fwd_cuda(exec, args));
  exec.device == Device::ref ? head_gate_fwd_ref(args) : head_gate_fwd_cpu(args);
}
void head_gate_bwd(const Exec& exec, const HeadGateBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(head_gate_bwd_cuda(exec, args));
  if (exec.device == Device::ref) return head_gate_bwd_ref(args);
  head_gate_bwd_cpu(args, reinterpret_cast<float*>(exec.scratch.data()));
}
void gated_add_fwd(const Exec& exec, const GatedAddFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(gated_add_fwd_cuda(exec, args));
  exec.device == Device::ref ? gated_add_fwd_ref(args) : gated_add_fwd_cpu(args);
}
void gated_add_bwd(const Exec& exec, const GatedAddBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(gated_add_bwd_cuda(exec, args));
  exec.device == Device::ref ? gated_add_bwd_ref(args) : gated_add_bwd_cpu(args);
}

Value head_gate(Builder& b, Value h, Value w, double kappa) {
  return b.emit1("head_gate", {h, w}, {{"kappa", kappa}});
}
Value gated_add(Builder& b, Value v, Value g, Value u) {
  return b.emit1("gated_add", {v, g, u});
}

namespace {

Shape drop_last(const Shape& shape) {
  Shape rest;
  for (int i = 0; i + 1 < shape.rank(); ++i) rest.push_back(shape[i]);
  return rest;
}

void expect_gate(std::string_view op, const Type& h, const Type& w, const Attrs& attrs) {
  expect_float(op, "h", h);
  expect_rank(op, "w", w, 2);
  expect_float(op, "w", w);
  if (h.shape.rank() < 1 || w.shape.cols() > h.shape.cols())
    fail(ErrorKind::shape, "{}: w has {} columns, but h has shape {}", op, w.shape.cols(),
         to_string(h.shape));
  if (attrs.number("kappa") == 0.0) fail(ErrorKind::usage, "{}: kappa is 0", op);
}

// head_gate: inputs (h, w) -> (g). Attribute kappa.
std::vector<Type> infer_gate(const OpTypes& t, const Attrs& attrs) {
  const Type &h = t.input(0), &w = t.input(1);
  expect_gate("head_gate", h, w, attrs);
  return {{statistics_dtype(h.dtype), h.shape.with_cols(w.shape[0])}};
}

void run_gate(const Exec& exec, const OpCall& c) {
  head_gate_fwd(
      exec,
      {.h = c.input(0), .w = c.input(1), .g = c.outputs[0], .kappa = c.attrs.number("kappa")});
}

Cost cost_gate(const OpTypes& t, const Attrs&) {
  const Type &h = t.input(0), &w = t.input(1);
  const int64_t rows = h.shape.rows();
  return {rows * w.shape.cols() * size_of(h.dtype) + w.bytes(), t.outputs[0].bytes(),
          2 * rows * w.elems()};
}

void vjp_gate(VjpContext& ctx) {
  const Op op = ctx.op();
  const Value dw = ctx.needs_grad(1) ? ctx.parameter_grad_to_add(1) : Value{};
  const bool fuse = ctx.needs_grad(0) && !ctx.is_parameter(0);
  const Value dh_in = fuse ? ctx.grad_so_far(0) : Value{};
  const Value dh = ctx.builder().emit1(
      "head_gate_bwd", {ctx.output_grad(0), op.outputs[0], op.inputs[0], op.inputs[1], dh_in},
      op.attrs, {dw});
  if (fuse) {
    ctx.replace_grad(0, dh);
  } else if (ctx.needs_grad(0)) {
    ctx.add_grad(0, dh);
  }
}

// head_gate_bwd: inputs (dg, g, h, w, dh_in?) -> (dh), updates (dw?). Attribute kappa.
std::vector<Type> infer_gate_bwd(const OpTypes& t, const Attrs& attrs) {
  const Type &h = t.input(2), &w = t.input(3);
  expect_gate("head_gate_bwd", h, w, attrs);
  const Shape g = h.shape.with_cols(w.shape[0]);
  expect_shape("head_gate_bwd", "dg", t.input(0), g);
  expect_shape("head_gate_bwd", "g", t.input(1), g);
  if (t.has_input(4)) {
    expect_shape("head_gate_bwd", "dh_in", t.input(4), h.shape);
    expect_dtype("head_gate_bwd", "dh_in", t.input(4), h.dtype);
  }
  if (t.has_update(0)) expect_shape("head_gate_bwd", "dw", t.update(0), w.shape);
  return {h};
}

void run_gate_bwd(const Exec& exec, const OpCall& c) {
  head_gate_bwd(exec, {.dg = c.input(0),
                       .g = c.input(1),
                       .h = c.input(2),
                       .w = c.input(3),
                       .dh_in = c.input(4),
                       .dh = c.outputs[0],
                       .dw = c.update(0),
                       .kappa = c.attrs.number("kappa")});
}

int64_t scratch_gate_bwd(const OpTypes& t, const Attrs&) {
  return t.has_update(0) ? kHeadGateBlocks * t.update(0).bytes() : 0;
}

int64_t scratch_gate_bwd_cuda(const OpTypes& t, const Attrs&) {
  return t.has_update(0) ? kHeadGateCudaBlocks * t.update(0).bytes() : 0;
}

Cost cost_gate_bwd(const OpTypes& t, const Attrs&) {
  const Type &h = t.input(2), &w = t.input(3);
  const int64_t touched = h.shape.rows() * w.shape.cols() * size_of(h.dtype);
  const int64_t dw = t.has_update(0) ? w.bytes() : 0;
  // With dh_in, dh is updated in place; without, all of it is written.
  const int64_t dh_read = t.has_input(4) ? touched : 0;
  const int64_t dh_written = t.has_input(4) ? touched : h.bytes();
  return {2 * t.input(0).bytes() + (t.has_update(0) ? touched : 0) + w.bytes() + dw + dh_read,
          dh_written + dw, 4 * h.shape.rows() * w.elems()};
}

// gated_add: inputs (v, g, u) -> (y).
std::vector<Type> infer_add(const OpTypes& t, const Attrs&) {
  const Type& v = t.input(0);
  expect_float("gated_add", "v", v);
  if (v.shape.rank() < 2)
    fail(ErrorKind::shape, "gated_add: v has shape {}, expected (..., heads, D)",
         to_string(v.shape));
  expect_shape("gated_add", "g", t.input(1), drop_last(v.shape));
  expect_dtype("gated_add", "g", t.input(1), statistics_dtype(v.dtype));
  expect_shape("gated_add", "u", t.input(2), v.shape);
  expect_dtype("gated_add", "u", t.input(2), v.dtype);
  return {v};
}

void run_add(const Exec& exec, const OpCall& c) {
  gated_add_fwd(exec, {.v = c.input(0), .g = c.input(1), .u = c.input(2), .y = c.outputs[0]});
}

Cost cost_add(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes();
  return {2 * bytes + t.input(1).bytes(), bytes, 2 * t.input(0).elems()};
}

void vjp_add(VjpContext& ctx) {
  const Op op = ctx.op();
  const Value dy = ctx.output_grad(0);
  if (ctx.needs_grad(1) || ctx.needs_grad(2)) {
    const std::vector<Value> grads =
        ctx.builder().emit("gated_add_bwd", {dy, op.inputs[1], op.inputs[2]});
    if (ctx.needs_grad(1)) ctx.add_grad(1, grads[0]);
    if (ctx.needs_grad(2)) ctx.add_grad(2, grads[1]);
  }
  if (ctx.needs_grad(0)) ctx.add_grad(0, dy);
}

// gated_add_bwd: inputs (dy, g, u) -> (dg, du).
std::vector<Type> infer_add_bwd(const OpTypes& t, const Attrs&) {
  const Type& dy = t.input(0);
  if (dy.shape.rank() < 2)
    fail(ErrorKind::shape, "gated_add_bwd: dy has shape {}, expected (..., heads, D)",
         to_string(dy.shape));
  expect_shape("gated_add_bwd", "g", t.input(1), drop_last(dy.shape));
  expect_shape("gated_add_bwd", "u", t.input(2), dy.shape);
  expect_dtype("gated_add_bwd", "u", t.input(2), dy.dtype);
  return {t.input(1), dy};
}

void run_add_bwd(const Exec& exec, const OpCall& c) {
  gated_add_bwd(
      exec,
      {.dy = c.input(0), .g = c.input(1), .u = c.input(2), .dg = c.outputs[0], .du = c.outputs[1]});
}

Cost cost_add_bwd(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes(), gates = t.input(1).bytes();
  return {2 * bytes + gates, bytes + gates, 3 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "head_gate", .infer = infer_gate, .vjp = vjp_gate, .cost = cost_gate}, run_gate},
    {{.name = "head_gate_bwd", .infer = infer_gate_bwd, .cost = cost_gate_bwd, .inplace = {{0, 4}}},
     run_gate_bwd,
     scratch_gate_bwd,
     scratch_gate_bwd_cuda},
    {{.name = "gated_add",
      .infer = infer_add,
      .vjp = vjp_add,
      .cost = cost_add,
      .inplace = {{0, 0}, {0, 2}}},
     run_add},
    {{.name = "gated_add_bwd",
      .infer = infer_add_bwd,
      .cost = cost_add_bwd,
      .inplace = {{1, 0}, {1, 2}}},
     run_add_bwd},
};

}  // namespace

std::span<const OpEntry> head_gate_ops() {
  return kEntries;
}

}  // namespace tightloop
