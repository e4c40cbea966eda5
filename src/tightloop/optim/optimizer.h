#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/recipe.h"
#include "tightloop/optim/groups.h"
#include "tightloop/optim/schedule.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// The hyperparameter slot of a group, f32 (8), role scalar: "hyper.<group>".
std::string hyper_name(std::string_view group);

/// Names of the state slots of one parameter: "<parameter>.m" and "<parameter>.v", or
/// "<parameter>.momentum" and "<parameter>.second_moment". They start as zeros.
std::vector<std::string> state_names(OptimizerKind kind, std::string_view parameter);

/// How a step computes; what it computes is the recipe's.
struct OptimizerCompute {
  /// What Muon's products are rounded to where the device can (PolarExpressOptions::dtype).
  DType dtype = DType::f32;
  /// Neighbouring matrices of one shape are orthogonalised together up to this many elements, for
  /// memory in proportion; 0: one by one.
  int64_t stack_elems = 0;
};

/// As many as keep a large GPU busy: 48 matrices of 768 x 768.
inline constexpr int64_t kCudaStackElems{int64_t{1} << 25};

/// The Program of one optimizer step over existing parameter slots. It reads each parameter's
/// gradient slot (grad_name; declared when missing) and its group's hyperparameters, and updates
/// the parameter and its state. State: AdamW's m and v have the parameter's dtype and shape; Muon's
/// momentum has its shape, the second moment (rows, 1) when rows >= cols, else (1, cols), both f32.
/// Error{internal} for a parameter without slot; Error{shape} for Muon on anything but a matrix.
Program build_optimizer(std::string name,
                        std::shared_ptr<SlotTable> slots,
                        const OpTable& ops,
                        const std::vector<ParameterGroup>& groups,
                        Recipe recipe,
                        const OptimizerCompute& compute = {});

using HyperValues = std::array<double, 8>;

/// [lr, beta1, beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t, 0], t = 1 at the first step.
HyperValues adamw_hypers(const ParameterGroup& group, double lr, int64_t t);
/// [lr, momentum, beta2, weight_decay, 0, 0, 0, 0].
HyperValues muon_hypers(const ParameterGroup& group,
                        double lr,
                        double momentum,
                        double weight_decay);

/// Computes the hyperparameters of step `it` (from 0) and hands each group's to
/// `write(index of the group, values)`: for the slot hyper_name(groups[index].name). Allocates
/// nothing.
void write_hypers(const std::vector<ParameterGroup>& groups,
                  const Schedule& schedule,
                  int64_t it,
                  const std::function<void(size_t group, std::span<const double> values)>& write);

/// Name of the output slot, f64 (), of emit_grad_sum_squares.
constexpr std::string_view kGradSumSquares = "grad_sum_squares";

/// Appends the sum of squares over the gradient slots of all groups, whose square root is the
/// gradient norm: zeroes the slot kGradSumSquares (declared when missing), then adds to it.
void emit_grad_sum_squares(Builder& b, const std::vector<ParameterGroup>& groups);

}  // namespace tightloop
