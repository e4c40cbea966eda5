#pragma once

#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tightloop/program/builder.h"

namespace tightloop {

struct DifferentiateOptions {
  /// True: gradient slots keep what they hold and add to it (later micro-steps). False: the first
  /// contribution overwrites.
  bool accumulate = false;
};

/// Appends to the Program the operations that compute d loss / d parameter, for every parameter
/// slot that loss depends on, into gradient slots named "grad.<parameter>" (created when missing,
/// same shape, f32). `loss` is a scalar temporary; its own gradient is 1. Reverse order, one
/// vector-Jacobian rule per op; gradients of a value with several readers are added in that order.
/// Error{unsupported} when a float gradient meets an op without a rule.
void differentiate(Program& program,
                   const OpTable& ops,
                   Value loss,
                   const DifferentiateOptions& options);

/// Name of the gradient slot of a parameter.
std::string grad_name(std::string_view parameter);

/// What a vector-Jacobian rule sees of the op it differentiates and how it hands gradients on.
class VjpContext {
 public:
  const Op& op() const { return op_; }
  Builder& builder() { return builder_; }
  const Type& type(Value v) const { return builder_.type(v); }

  /// Gradient of output i; empty when nothing downstream uses it.
  Value output_grad(size_t i) const;
  /// Whether input i is given and a gradient with respect to it is wanted.
  bool needs_grad(size_t i) const;

  /// Gradient contributed to temporary input i so far, or empty. A rule that can add to it in one
  /// pass takes it as an operand and calls replace_grad.
  Value grad_so_far(size_t i) const;
  void replace_grad(size_t i, Value grad);
  /// Adds a contribution to input i: an `add` op when a temporary has one already, a `store` into
  /// the gradient slot for a parameter, in the slot's dtype.
  void add_grad(size_t i, Value grad);

  struct ParameterGrad {
    Value slot;
    bool accumulate = false;
  };
  /// Whether input i is a parameter slot, or one cast to another dtype for computing, so that its
  /// gradient lives in a slot (f32 whatever the parameter was cast to).
  bool is_parameter(size_t i) const;
  /// The gradient slot of parameter input i. `accumulate` says whether the op must add to it or may
  /// overwrite all of it. Ops that can only add call parameter_grad_to_add, which zeroes it first
  /// where needed.
  ParameterGrad parameter_grad(size_t i);
  Value parameter_grad_to_add(size_t i);

 private:
  friend void differentiate(Program&, const OpTable&, Value, const DifferentiateOptions&);
  /// The parameter slot that v is or was cast from, or empty.
  Value parameter_of(Value v) const;
  VjpContext(Builder& builder, const DifferentiateOptions& options)
      : builder_(builder), options_(options) {}

  Builder& builder_;
  DifferentiateOptions options_;
  Op op_;
  std::vector<bool> needs_;                   // by value id
  std::unordered_map<int32_t, Value> casts_;  // value id -> the parameter it was cast from
  std::unordered_map<int32_t, Value> grads_;  // value id -> its gradient so far
  std::unordered_set<int32_t> written_;       // gradient slots already written in this Program
};

}  // namespace tightloop
