#include "tightloop/ops/rmsnorm/rmsnorm.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/rmsnorm/rmsnorm_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void rmsnorm_fwd(const Exec& exec, const RmsnormFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(rmsnorm_fwd_cuda(exec, args));
  exec.device == Device::ref ? rmsnorm_fwd_ref(args) : rmsnorm_fwd_cpu(args);
}

void rmsnorm_bwd(const Exec& exec, const RmsnormBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(rmsnorm_bwd_cuda(exec, args));
  if (exec.device == Device::ref) return rmsnorm_bwd_ref(args);
  rmsnorm_bwd_cpu(args, reinterpret_cast<float*>(exec.scratch.data()));
}

Value rmsnorm(Builder& b, Value x, Value weight, double eps, double scale) {
  return b.emit("rmsnorm", {x, weight}, {{"eps", eps}, {"scale", scale}})[0];
}

namespace {

// rmsnorm: inputs (x, weight?) -> outputs (y, rstd). Attributes eps, scale.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  expect_float("rmsnorm", "x", x);
  if (x.shape.rank() == 0) fail(ErrorKind::shape, "rmsnorm: x is a scalar, expected (..., cols)");
  if (t.has_input(1)) {
    expect_shape("rmsnorm", "weight", t.input(1), {x.shape.cols()});
    expect_dtype("rmsnorm", "weight", t.input(1), x.dtype);
  }
  return {x, {statistics_dtype(x.dtype), {x.shape.rows()}}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  rmsnorm_fwd(exec, {.x = c.input(0),
                     .weight = c.input(1),
                     .y = c.outputs[0],
                     .rstd = c.outputs[1],
                     .eps = c.attrs.number("eps"),
                     .scale = c.attrs.number("scale")});
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  const int64_t weight = t.has_input(1) ? t.input(1).bytes() : 0;
  return {t.input(0).bytes() + weight, t.input(0).bytes() + t.outputs[1].bytes(),
          4 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  const Value weight = op.inputs[1];
  const Value saved = weight ? op.inputs[0] : op.outputs[0];
  const Value dweight = weight && ctx.needs_grad(1) ? ctx.parameter_grad_to_add(1) : Value{};
  const Value dx =
      ctx.builder().emit1("rmsnorm_bwd", {ctx.output_grad(0), saved, op.outputs[1], weight},
                          {{"scale", op.attrs.number("scale")}}, {dweight});
  if (ctx.needs_grad(0)) ctx.add_grad(0, dx);
}

// rmsnorm_bwd: inputs (dy, saved, rstd, weight?) -> (dx), updates (dweight?). Attribute scale.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  const Type& dy = t.input(0);
  expect_shape("rmsnorm_bwd", "saved", t.input(1), dy.shape);
  expect_shape("rmsnorm_bwd", "rstd", t.input(2), {dy.shape.rows()});
  if (t.has_input(3)) expect_shape("rmsnorm_bwd", "weight", t.input(3), {dy.shape.cols()});
  if (t.has_update(0)) expect_shape("rmsnorm_bwd", "dweight", t.update(0), {dy.shape.cols()});
  return {dy};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  rmsnorm_bwd(exec, {.dy = c.input(0),
                     .saved = c.input(1),
                     .rstd = c.input(2),
                     .weight = c.input(3),
                     .dx = c.outputs[0],
                     .dweight = c.update(0),
                     .scale = c.attrs.number("scale")});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  return t.has_update(0) ? kRmsnormBlocks * t.input(0).shape.cols() * int64_t{sizeof(float)} : 0;
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs&) {
  return t.has_update(0) ? kRmsnormCudaBlocks * t.input(0).shape.cols() * int64_t{sizeof(float)}
                         : 0;
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  return {2 * t.input(0).bytes() + t.input(2).bytes(), t.input(0).bytes(), 6 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "rmsnorm", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd, .inplace = {{0, 0}}},
     run_fwd},
    {{.name = "rmsnorm_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}}},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
};

}  // namespace

std::span<const OpEntry> rmsnorm_ops() {
  return kEntries;
}

}  // namespace tightloop
