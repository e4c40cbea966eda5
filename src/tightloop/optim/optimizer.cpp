#include "tightloop/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

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

const Type& matrix_type(Builder& b, const std::string& parameter) {
  const Type& type = b.type(b.slot(parameter));
  if (type.shape.rank() != 2)
    fail(ErrorKind::shape, "Muon: parameter '{}' has shape {}, expected a matrix", parameter,
         to_string(type.shape));
  return type;
}

/// How many of the parameters, from the first on, are orthogonalised together.
size_t stack_size(Builder& b, std::span<const std::string> parameters, int64_t stack_elems) {
  const Shape shape = matrix_type(b, parameters[0]).shape;
  const size_t most = static_cast<size_t>(std::clamp<int64_t>(
      stack_elems / std::max<int64_t>(1, shape.elems()), 1,
      static_cast<int64_t>(std::min({kPolarStack, kMuonStack, parameters.size()}))));
  size_t size = 1;
  while (size < most && matrix_type(b, parameters[size]).shape == shape) ++size;
  return size;
}

/// Steps of parameters of one shape. `group` names what they have in common.
void emit_muon(Builder& b,
               std::span<const std::string> parameters,
               const std::string& group,
               Value hyper,
               const PolarExpressOptions& options) {
  b.set_scope("optimizer/" + (parameters.size() > 1 ? group : parameters[0]));
  std::vector<Value> gradient, momentum, p, second;
  for (const std::string& parameter : parameters) {
    const Shape shape = matrix_type(b, parameter).shape;
    const std::vector<std::string> names = state_names(OptimizerKind::muon, parameter);
    gradient.push_back(gradient_of(b, parameter));
    p.push_back(b.slot(parameter));
    momentum.push_back(state_slot(b, names[0], {DType::f32, shape}));
    second.push_back(state_slot(b, names[1], {DType::f32, muon_second_moment_shape(shape)}));
  }
  std::vector<Value> u = muon_momentum(b, std::move(gradient), hyper, std::move(momentum));
  std::vector<Value> x = polar_express(b, std::move(u), options);
  muon_update(b, std::move(x), hyper, std::move(p), second);
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
                        Recipe recipe,
                        const OptimizerCompute& compute) {
  Program program(std::move(name), std::move(slots));
  Builder b(program, ops);
  const bool newer = recipe == Recipe::nanochat_2026_07;
  const PolarExpressOptions polar{.norm_factor = newer ? 1.01 : 1.02,
                                  .row_equilibrate = newer,
                                  .renormalize = newer,
                                  .dtype = compute.dtype};
  for (const ParameterGroup& group : groups) {
    const Value hyper = program.slot_value(program.slots().add_or_find(
        {hyper_name(group.name), {DType::f32, {kHypers}}, SlotRole::scalar}));
    std::span<const std::string> left = group.parameters;
    while (!left.empty()) {
      const bool muon = group.kind == OptimizerKind::muon;
      const size_t size = muon ? stack_size(b, left, compute.stack_elems) : 1;
      if (muon) {
        emit_muon(b, left.first(size), group.name, hyper, polar);
      } else {
        b.set_scope("optimizer/" + left[0]);
        emit_adamw(b, left[0], hyper);
      }
      left = left.subspan(size);
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
  std::vector<Value> gradients;
  const auto emit = [&] {
    if (!gradients.empty()) sum_squares(b, std::exchange(gradients, {}), sum);
  };
  for (const ParameterGroup& group : groups) {
    for (const std::string& parameter : group.parameters) {
      gradients.push_back(b.slot(grad_name(parameter)));
      if (gradients.size() == kSumSquaresStack) emit();
    }
  }
  emit();
}

}  // namespace tightloop
