#include "tightloop/ops/op_template/op_template.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/op_template/op_template_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void op_template_fwd(const Exec& exec, const OpTemplateFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(op_template_fwd_cuda(exec, args));
  exec.device == Device::ref ? op_template_fwd_ref(args) : op_template_fwd_cpu(args);
}

void op_template_bwd(const Exec& exec, const OpTemplateBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(op_template_bwd_cuda(exec, args));
  exec.device == Device::ref ? op_template_bwd_ref(args) : op_template_bwd_cpu(args);
}

Value op_template(Builder& b, Value x, double scale) {
  return b.emit1("op_template", {x}, {{"scale", scale}});
}

namespace {

// op_template: inputs (x) -> outputs (y). Attribute scale.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  expect_float("op_template", "x", t.input(0));
  return {t.input(0)};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  op_template_fwd(exec, {.x = c.input(0), .y = c.outputs[0], .scale = c.attrs.number("scale")});
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  return {t.input(0).bytes(), t.outputs[0].bytes(), 2 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  ctx.add_grad(0, ctx.builder().emit1("op_template_bwd", {ctx.output_grad(0), op.inputs[0]},
                                      {{"scale", op.attrs.number("scale")}}));
}

// op_template_bwd: inputs (dy, x) -> outputs (dx). Attribute scale.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  expect_shape("op_template_bwd", "x", t.input(1), t.input(0).shape);
  return {t.input(0)};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  op_template_bwd(
      exec,
      {.dy = c.input(0), .x = c.input(1), .dx = c.outputs[0], .scale = c.attrs.number("scale")});
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  return {2 * t.input(0).bytes(), t.outputs[0].bytes(), 3 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "op_template", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd, .inplace = {{0, 0}}},
     run_fwd},
    {{.name = "op_template_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}}},
     run_bwd},
};

}  // namespace

std::span<const OpEntry> op_template_ops() {
  return kEntries;
}

}  // namespace tightloop
