#include "tightloop/ops/smear/smear.h"

#include <cstring>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/smear/smear_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void smear_fwd(const Exec& exec, const SmearFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(smear_fwd_cuda(exec, args, {}, {}));
  exec.device == Device::ref ? smear_fwd_ref(args, nullptr) : smear_fwd_cpu(args, nullptr);
}

void smear_bwd(const Exec& exec, const SmearBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(smear_bwd_cuda(exec, args));
  if (exec.device == Device::ref) return smear_bwd_ref(args);
  smear_bwd_cpu(args, reinterpret_cast<double*>(exec.scratch.data()));
}

void smear_cached(const Exec& exec, const SmearCached& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(smear_cached_cuda(exec, args));
  const int32_t pos = *args.pos.as<int32_t>();
  if (pos < 0) fail(ErrorKind::data, "smear_cached: pos is {}, expected 0 or more", pos);
  const SmearFwd fwd{.x = args.x, .w = args.w, .lambda = args.lambda, .y = args.y};
  if (exec.device == Device::ref) {
    smear_fwd_ref(fwd, pos == 0 ? nullptr : args.prev.as<double>());
  } else {
    smear_fwd_cpu(fwd, pos == 0 ? nullptr : args.prev.as<float>());
  }
  const int64_t batch = args.x.shape()[0], tokens = args.x.shape()[1];
  const auto row_bytes = static_cast<size_t>(args.prev.bytes() / batch);
  for (int64_t b = 0; b < batch; ++b) {
    const auto last = static_cast<size_t>((b + 1) * tokens - 1);
    std::memcpy(static_cast<std::byte*>(args.prev.data) + static_cast<size_t>(b) * row_bytes,
                static_cast<const std::byte*>(args.x.data) + last * row_bytes, row_bytes);
  }
}

Value smear(Builder& b, Value x, Value w, Value lambda) {
  return b.emit1("smear", {x, w, lambda});
}
Value smear_cached(Builder& b, Value x, Value w, Value lambda, Value pos, Value prev) {
  return b.emit1("smear_cached", {x, w, lambda, pos}, {}, {prev});
}

namespace {

void expect_operands(std::string_view op, const Type& x, const Type& w, const Type& lambda) {
  expect_float(op, "x", x);
  expect_rank(op, "x", x, 3);
  expect_rank(op, "w", w, 2);
  expect_float(op, "w", w);
  if (w.shape[0] != 1 || w.shape[1] > x.shape[2])
    fail(ErrorKind::shape, "{}: w has shape {}, expected (1, m) with m up to {}", op,
         to_string(w.shape), x.shape[2]);
  expect_shape(op, "lambda", lambda, {1});
  expect_dtype(op, "lambda", lambda, DType::f32);
  if (x.elems() == 0)
    fail(ErrorKind::shape, "{}: x has shape {}, expected tokens", op, to_string(x.shape));
}

// smear: inputs (x, w, lambda) -> (y).
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  expect_operands("smear", t.input(0), t.input(1), t.input(2));
  return {t.input(0)};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  smear_fwd(exec, {.x = c.input(0), .w = c.input(1), .lambda = c.input(2), .y = c.outputs[0]});
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  return {x.bytes() + t.input(1).bytes() + t.input(2).bytes(), x.bytes(),
          2 * x.elems() + 2 * x.shape.rows() * t.input(1).elems()};
}

void vjp(VjpContext& ctx) {
  const Op op = ctx.op();
  const Value dw = ctx.needs_grad(1) ? ctx.parameter_grad_to_add(1) : Value{};
  const Value dlambda = ctx.needs_grad(2) ? ctx.parameter_grad_to_add(2) : Value{};
  const Value dx = ctx.builder().emit1(
      "smear_bwd", {ctx.output_grad(0), op.inputs[0], op.inputs[1], op.inputs[2]}, {},
      {dw, dlambda});
  if (ctx.needs_grad(0)) ctx.add_grad(0, dx);
}

// smear_bwd: inputs (dy, x, w, lambda) -> (dx), updates (dw?, dlambda?).
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(1);
  expect_operands("smear_bwd", x, t.input(2), t.input(3));
  expect_shape("smear_bwd", "dy", t.input(0), x.shape);
  expect_dtype("smear_bwd", "dy", t.input(0), x.dtype);
  if (t.has_update(0)) expect_shape("smear_bwd", "dw", t.update(0), t.input(2).shape);
  if (t.has_update(1)) expect_shape("smear_bwd", "dlambda", t.update(1), {1});
  return {x};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  smear_bwd(exec, {.dy = c.input(0),
                   .x = c.input(1),
                   .w = c.input(2),
                   .lambda = c.input(3),
                   .dx = c.outputs[0],
                   .dw = c.update(0),
                   .dlambda = c.update(1)});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  if (!t.has_update(0) && !t.has_update(1)) return 0;
  return kSmearBlocks * (t.input(2).elems() + 1) * int64_t{sizeof(double)};
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs& attrs) {
  const int64_t sums = scratch_bwd(t, attrs);
  return sums == 0 ? 0 : sums + t.input(1).shape.rows() * 2 * int64_t{sizeof(float)};
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(1);
  return {2 * x.bytes(), x.bytes(), 5 * x.elems()};
}

// smear_cached: inputs (x, w, lambda, pos) -> (y), updates (prev).
std::vector<Type> infer_cached(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  expect_operands("smear_cached", x, t.input(1), t.input(2));
  expect_shape("smear_cached", "pos", t.input(3), {});
  expect_dtype("smear_cached", "pos", t.input(3), DType::i32);
  expect_shape("smear_cached", "prev", t.update(0), {x.shape[0], x.shape[2]});
  expect_dtype("smear_cached", "prev", t.update(0), x.dtype);
  return {x};
}

void run_cached(const Exec& exec, const OpCall& c) {
  smear_cached(exec, {.x = c.input(0),
                      .w = c.input(1),
                      .lambda = c.input(2),
                      .pos = c.input(3),
                      .prev = c.update(0),
                      .y = c.outputs[0]});
}

Cost cost_cached(const OpTypes& t, const Attrs& attrs) {
  Cost cost = cost_fwd(t, attrs);
  return cost += {t.update(0).bytes(), t.update(0).bytes(), 0};
}

const OpEntry kEntries[] = {
    {{.name = "smear", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd}, run_fwd},
    {{.name = "smear_bwd", .infer = infer_bwd, .cost = cost_bwd},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
    {{.name = "smear_cached", .infer = infer_cached, .cost = cost_cached}, run_cached},
};

}  // namespace

std::span<const OpEntry> smear_ops() {
  return kEntries;
}

}  // namespace tightloop
