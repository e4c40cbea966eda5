#include "tightloop/program/differentiate.h"

namespace tightloop {

std::string grad_name(std::string_view parameter) {
  return "grad." + std::string(parameter);
}

Value VjpContext::output_grad(size_t i) const {
  const auto it = grads_.find(op_.outputs[i].id);
  return it == grads_.end() ? Value{} : it->second;
}

bool VjpContext::needs_grad(size_t i) const {
  if (i >= op_.inputs.size() || !op_.inputs[i]) return false;
  return needs_[static_cast<size_t>(op_.inputs[i].id)];
}

Value VjpContext::grad_so_far(size_t i) const {
  const auto it = grads_.find(op_.inputs[i].id);
  return it == grads_.end() ? Value{} : it->second;
}

void VjpContext::replace_grad(size_t i, Value grad) {
  TL_CHECK(!is_parameter(i));
  TL_CHECK(type(grad).shape == type(op_.inputs[i]).shape);
  grads_[op_.inputs[i].id] = grad;
}

void VjpContext::add_grad(size_t i, Value grad) {
  if (is_parameter(i)) {
    const ParameterGrad target = parameter_grad(i);
    if (type(grad).dtype != type(target.slot).dtype)
      grad = builder_.emit1("cast", {grad},
                            {{"dtype", static_cast<int64_t>(type(target.slot).dtype)}});
    builder_.emit("store", {grad}, {{"accumulate", target.accumulate}}, {target.slot});
    return;
  }
  const Value before = grad_so_far(i);
  replace_grad(i, before ? builder_.emit1("add", {before, grad}) : grad);
}

Value VjpContext::parameter_of(Value v) const {
  const Program& program = builder_.program();
  const std::optional<SlotId> slot = program.info(v).slot;
  if (slot) return program.slots()[*slot].role == SlotRole::parameter ? v : Value{};
  const auto cast = casts_.find(v.id);
  return cast == casts_.end() ? Value{} : cast->second;
}

bool VjpContext::is_parameter(size_t i) const {
  return static_cast<bool>(parameter_of(op_.inputs[i]));
}

VjpContext::ParameterGrad VjpContext::parameter_grad(size_t i) {
  TL_CHECK(is_parameter(i));
  Program& program = builder_.program();
  const ValueInfo& parameter = program.info(parameter_of(op_.inputs[i]));
  const SlotId id = program.slots().add_or_find(
      {grad_name(parameter.name), {DType::f32, parameter.type.shape}, SlotRole::gradient});
  const bool first = written_.insert(id.index).second;
  return {program.slot_value(id), options_.accumulate || !first};
}

Value VjpContext::parameter_grad_to_add(size_t i) {
  const ParameterGrad grad = parameter_grad(i);
  if (!grad.accumulate) builder_.emit("fill", {}, {{"value", 0.0}}, {grad.slot});
  return grad.slot;
}

void differentiate(Program& program,
                   const OpTable& ops,
                   Value loss,
                   const DifferentiateOptions& options) {
  if (program.type(loss).elems() != 1 || program.info(loss).slot)
    fail(ErrorKind::shape, "differentiate: the loss must be a scalar temporary, got {}",
         to_string(program.type(loss)));

  Builder builder(program, ops);
  VjpContext ctx(builder, options);
  const size_t forward_ops = program.ops().size();

  // A value needs a gradient when it is a float that depends on a parameter.
  ctx.needs_.assign(static_cast<size_t>(program.value_count()), false);
  for (int32_t id = 0; id < program.value_count(); ++id) {
    const ValueInfo& info = program.info(Value{id});
    if (info.slot && program.slots()[*info.slot].role == SlotRole::parameter)
      ctx.needs_[static_cast<size_t>(id)] = true;
  }
  for (size_t i = 0; i < forward_ops; ++i) {
    const Op& op = program.ops()[i];
    for (size_t k = 0; op.def->name == "cast" && k < op.inputs.size(); ++k) {
      if (ctx.parameter_of(op.inputs[k])) ctx.casts_[op.outputs[k].id] = op.inputs[k];
    }
    bool needs = false;
    for (Value v : op.inputs) needs = needs || (v && ctx.needs_[static_cast<size_t>(v.id)]);
    for (Value v : op.outputs)
      ctx.needs_[static_cast<size_t>(v.id)] = needs && is_float(program.type(v).dtype);
  }
  if (!ctx.needs_[static_cast<size_t>(loss.id)])
    fail(ErrorKind::internal, "differentiate: the loss depends on no parameter");

  builder.set_scope("loss'");
  ctx.grads_[loss.id] = builder.emit1("constant", {}, {{"value", 1.0}});
  for (size_t i = forward_ops; i-- > 0;) {
    ctx.op_ = program.ops()[i];  // a copy: emitting moves the list
    bool reached = false, wanted = false;
    for (Value v : ctx.op_.outputs) reached = reached || ctx.grads_.contains(v.id);
    for (Value v : ctx.op_.inputs) wanted = wanted || (v && ctx.needs_[static_cast<size_t>(v.id)]);
    if (!reached || !wanted) continue;
    if (ctx.op_.def->vjp == nullptr)
      fail(ErrorKind::unsupported, "{} in '{}' has no gradient", ctx.op_.def->name, ctx.op_.scope);
    builder.set_scope(ctx.op_.scope + "'");
    ctx.op_.def->vjp(ctx);
  }
}

}  // namespace tightloop
