#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tightloop/program/program.h"

namespace tightloop {

/// Appends operations to a Program, inferring and checking types. Operations add free functions
/// that take a Builder first (`Value y = rmsnorm(b, x, …)`); a model is written with those.
class Builder {
 public:
  Builder(Program& program, const OpTable& ops) : program_(program), ops_(ops) {}

  Program& program() { return program_; }
  const OpTable& ops() const { return ops_; }
  const Type& type(Value v) const { return program_.type(v); }

  /// The value of the slot with this name. Error{internal} when there is none.
  Value slot(std::string_view name) { return program_.slot_value(program_.slots().get(name)); }

  /// Appends one op and returns its outputs. Error{shape|dtype} carries the op's name and scope.
  std::vector<Value> emit(std::string_view op,
                          std::vector<Value> inputs,
                          Attrs attrs = {},
                          std::vector<Value> updates = {});
  /// As emit, for ops with exactly one output.
  Value emit1(std::string_view op,
              std::vector<Value> inputs,
              Attrs attrs = {},
              std::vector<Value> updates = {});

  /// Names the part of the model that following ops belong to.
  void set_scope(std::string scope) { scope_ = std::move(scope); }
  const std::string& scope() const { return scope_; }

 private:
  Program& program_;
  const OpTable& ops_;
  std::string scope_;
};

}  // namespace tightloop
