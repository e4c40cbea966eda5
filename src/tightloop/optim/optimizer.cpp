#include "tightloop/optim/optimizer.h"

#include <cmath>

#include "tightloop/ops/adamw/adamw.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/muon/muon.h"
#include "tightloop/ops/polar_express/polar_express.h"
#include "tightloop/ops/sum_squares/sum_squares.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr int64_t kHypers{8};

Value gradient_of(Builder& b, const std::string& parameter) {
  SlotTable& slots = b.program().slots();
  const Shape shape = slots[slots.get(parameter)].type.shape;
  return b.program().slot_value(
      slots.add_or_find({grad_name(parameter), {DType::f32, shape}, SlotRole::gradient}));
}

Value state_slot(Builder& b, std::string name, const Type& type) {
  return b.program().slot_value(
      b.program().slots().add_or_find({std::move(name), type, SlotRole::optimizer}));
}

void emit_adamw(Builder& b, const std::string& parameter, Value hyper) {
  const Value p = b.slot(parameter);
  const Type type = b.type(p);
  const std::vector<std::string> names = state_names(OptimizerKind::adamw, parameter);
  const Value m = state_slot(b, names[0], type), v = state_slot(b, names[1], type);
  adamw(b, gradient_of(b, parameter), hyper, p, m, v);
}

void emit_muon(Builder& b, const std::string& parameter, Value hyper, Recipe recipe) {
  const Value p = b.slot(parameter);
  const Type type = b.type(p);
  if (type.shape.rank() != 2)
    fail(ErrorKind::shape, "Muon: parameter '{}' has shape {}, expected a matrix", parameter,
         to_string(type.shape));
  const std::vector<std::string> names = state_names(OptimizerKind::muon, parameter);
  const Value momentum = state_slot(b, names[0], {DType::f32, type.shape});
  const Value second = state_slot(b, names[1], {DType::f32, muon_second_moment_shape(type.shape)});
  const Value u = muon_momentum(b, gradient_of(b, parameter), hyper, momentum);
  const bool newer = recipe == Recipe::nanochat_2026_07;
  const Value x = polar_express(
      b, u, {.norm_factor = newer ? 1.01 : 1.02, .row_equilibrate = newer, .renormalize = newer});
  muon_update(b, x, hyper, p, second);
}

}  // namespace

std::string hyper_name(std::string_view group) {
  return "hyper." + std::string(group);
}

std::vector<std::string> state_names(OptimizerKind kind, std::string_view parameter) {
  const std::string name(parameter);
  if (kind == OptimizerKind::adamw) return {name + ".m", name + ".v"};
  return {name + ".momentum", name + ".second_moment"};
}

Program build_optimizer(std::string name,
                        std::shared_ptr<SlotTable> slots,
                        const OpTable& ops,
                        const std::vector<ParameterGroup>& groups,
                        Recipe recipe) {
  Program program(std::move(name), std::move(slots));
  Builder b(program, ops);
  for (const ParameterGroup& group : groups) {
    const Value hyper = program.slot_value(program.slots().add_or_find(
        {hyper_name(group.name), {DType::f32, {kHypers}}, SlotRole::scalar}));
    for (const std::string& parameter : group.parameters) {
      b.set_scope("optimizer/" + parameter);
      if (group.kind == OptimizerKind::adamw)
        emit_adamw(b, parameter, hyper);
      else
        emit_muon(b, parameter, hyper, recipe);
    }
  }
  return program;
}

HyperValues adamw_hypers(const ParameterGroup& group, double lr, int64_t t) {
  const auto count = static_cast<double>(t);
  return {lr,
          group.beta1,
          group.beta2,
          group.eps,
          group.weight_decay,
          1.0 - std::pow(group.beta1, count),
          1.0 - std::pow(group.beta2, count),
          0.0};
}

HyperValues muon_hypers(const ParameterGroup& group,
                        double lr,
                        double momentum,
                        double weight_decay) {
  return {lr, momentum, group.beta2, weight_decay, 0.0, 0.0, 0.0, 0.0};
}

void write_hypers(const std::vector<ParameterGroup>& groups,
                  const Schedule& schedule,
                  int64_t it,
                  const std::function<void(size_t group, std::span<const double> values)>& write) {
  const double lr_multiplier = schedule.lr_multiplier(it);
  for (size_t i = 0; i < groups.size(); ++i) {
    const ParameterGroup& group = groups[i];
    const double lr = group.lr * lr_multiplier;
    const double decay = group.weight_decay *
                         (group.schedule_weight_decay ? schedule.weight_decay_multiplier(it) : 1.0);
    const HyperValues values = group.kind == OptimizerKind::adamw
                                   ? adamw_hypers(group, lr, it + 1)
                                   : muon_hypers(group, lr, schedule.muon_momentum(it), decay);
    write(i, values);
  }
}

void emit_grad_sum_squares(Builder& b, const std::vector<ParameterGroup>& groups) {
  SlotTable& slots = b.program().slots();
  const Value sum = b.program().slot_value(
      slots.add_or_find({std::string(kGradSumSquares), {DType::f64, {}}, SlotRole::output}));
  b.set_scope("gradient norm");
  fill(b, sum, 0.0);
  for (const ParameterGroup& group : groups) {
    for (const std::string& parameter : group.parameters)
      sum_squares(b, b.slot(grad_name(parameter)), sum);
  }
}

}  // namespace tightloop
