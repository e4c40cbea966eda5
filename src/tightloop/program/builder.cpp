#include "tightloop/program/builder.h"

namespace tightloop {

std::vector<Value> Builder::emit(std::string_view name,
                                 std::vector<Value> inputs,
                                 Attrs attrs,
                                 std::vector<Value> updates) {
  Op op;
  op.def = &ops_.get(name);
  op.inputs = std::move(inputs);
  op.updates = std::move(updates);
  op.attrs = std::move(attrs);
  op.scope = scope_;
  std::vector<Type> types;
  try {
    types = op.def->infer(program_.types_of(op), op.attrs);
  } catch (Error& e) {
    e.with_context(fmt::format("building {} in '{}'", name, scope_));
    throw;
  }
  for (const Type& type : types)
    op.outputs.push_back(program_.add_temp(type, fmt::format("{}.{}", scope_, name)));
  program_.ops().push_back(op);
  return op.outputs;
}

Value Builder::emit1(std::string_view name,
                     std::vector<Value> inputs,
                     Attrs attrs,
                     std::vector<Value> updates) {
  const std::vector<Value> outputs =
      emit(name, std::move(inputs), std::move(attrs), std::move(updates));
  TL_CHECK(outputs.size() == 1);
  return outputs[0];
}

}  // namespace tightloop
