#include "tightloop/program/program.h"

#include <algorithm>

namespace tightloop {

std::string_view name_of(SlotRole role) {
  switch (role) {
    case SlotRole::parameter:
      return "parameters";
    case SlotRole::gradient:
      return "gradients";
    case SlotRole::optimizer:
      return "optimizer";
    case SlotRole::cache:
      return "cache";
    case SlotRole::constant:
      return "constants";
    case SlotRole::input:
      return "inputs";
    case SlotRole::scalar:
      return "scalars";
    case SlotRole::output:
      return "outputs";
  }
  return "?";
}

SlotId SlotTable::add(Slot slot) {
  const auto [it, fresh] = by_name_.emplace(slot.name, static_cast<int32_t>(slots_.size()));
  if (!fresh) fail(ErrorKind::internal, "slot '{}' exists already", slot.name);
  slots_.push_back(std::move(slot));
  return SlotId{it->second};
}

SlotId SlotTable::add_or_find(Slot slot) {
  const std::optional<SlotId> found = find(slot.name);
  if (!found) return add(std::move(slot));
  const Slot& old = (*this)[*found];
  if (!(old.type == slot.type) || old.role != slot.role)
    fail(ErrorKind::internal, "slot '{}' exists as {} {}, wanted {} {}", slot.name,
         name_of(old.role), to_string(old.type), name_of(slot.role), to_string(slot.type));
  return *found;
}

std::optional<SlotId> SlotTable::find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) return std::nullopt;
  return SlotId{it->second};
}

SlotId SlotTable::get(std::string_view name) const {
  const std::optional<SlotId> id = find(name);
  if (!id) fail(ErrorKind::internal, "no slot is named '{}'", name);
  return *id;
}

Value Program::slot_value(SlotId id) {
  const auto it = slot_values_.find(id.index);
  if (it != slot_values_.end()) return Value{it->second};
  const Value v{static_cast<int32_t>(values_.size())};
  const Slot& slot = (*slots_)[id];
  values_.push_back({slot.type, slot.name, id});
  slot_values_.emplace(id.index, v.id);
  return v;
}

Value Program::add_temp(Type type, std::string name) {
  values_.push_back({type, std::move(name), std::nullopt});
  return Value{static_cast<int32_t>(values_.size()) - 1};
}

OpTypes Program::types_of(const Op& op) const {
  OpTypes types;
  const auto optional_type = [&](Value v) -> std::optional<Type> {
    if (!v) return std::nullopt;
    return type(v);
  };
  for (Value v : op.inputs) types.inputs.push_back(optional_type(v));
  for (Value v : op.updates) types.updates.push_back(optional_type(v));
  for (Value v : op.outputs) types.outputs.push_back(type(v));
  return types;
}

std::optional<int> Program::producer(Value v) const {
  if (info(v).slot) return std::nullopt;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const auto& outs = ops_[i].outputs;
    if (std::find(outs.begin(), outs.end(), v) != outs.end()) return static_cast<int>(i);
  }
  return std::nullopt;
}

std::vector<int> Program::users(Value v) const {
  std::vector<int> found;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const Op& op = ops_[i];
    if (std::find(op.inputs.begin(), op.inputs.end(), v) != op.inputs.end() ||
        std::find(op.updates.begin(), op.updates.end(), v) != op.updates.end())
      found.push_back(static_cast<int>(i));
  }
  return found;
}

void Program::validate() const {
  std::vector<bool> assigned(values_.size(), false);
  for (size_t i = 0; i < values_.size(); ++i) assigned[i] = values_[i].slot.has_value();
  for (size_t index = 0; index < ops_.size(); ++index) {
    const Op& op = ops_[index];
    const auto bad = [&](std::string_view what, Value v) {
      fail(ErrorKind::internal, "program '{}', op {} {} ({}): {} %{}", name_, index, op.def->name,
           op.scope, what, v.id);
    };
    for (Value v : op.inputs) {
      if (v && !assigned[static_cast<size_t>(v.id)]) bad("reads before assignment", v);
    }
    for (Value v : op.updates) {
      if (v && !info(v).slot) bad("updates a temporary", v);
    }
    OpTypes types = types_of(op);
    types.outputs.clear();
    const std::vector<Type> inferred = op.def->infer(types, op.attrs);
    TL_CHECK(inferred.size() == op.outputs.size());
    for (size_t i = 0; i < op.outputs.size(); ++i) {
      const Value v = op.outputs[i];
      if (assigned[static_cast<size_t>(v.id)]) bad("assigns twice", v);
      if (!(type(v) == inferred[i])) bad("assigns another type than inferred to", v);
      assigned[static_cast<size_t>(v.id)] = true;
    }
  }
}

std::string to_string(const Program& program, const Op& op) {
  constexpr size_t kMostListed = 12;  // of a stack of operands only the ends are shown
  const auto list = [&](const std::vector<Value>& values, bool types) {
    std::string text;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i > 0) text += ", ";
      if (i == 1 && values.size() > kMostListed) {
        i = values.size() - 1;
        text += fmt::format("({} more), ", values.size() - 2);
      }
      const Value v = values[i];
      if (!v) {
        text += "-";
      } else {
        const ValueInfo& info = program.info(v);
        text += info.slot ? "@" + info.name : "%" + std::to_string(v.id);
        if (types) text += ":" + to_string(info.type);
      }
    }
    return text;
  };
  std::string text;
  if (!op.outputs.empty()) text += list(op.outputs, true) + " = ";
  text += std::string(op.def->name) + "(" + list(op.inputs, false) + ")";
  if (!op.updates.empty()) text += " -> " + list(op.updates, false);
  if (!op.attrs.entries().empty()) {
    text += " {";
    for (size_t i = 0; i < op.attrs.entries().size(); ++i) {
      const auto& [key, value] = op.attrs.entries()[i];
      text += (i > 0 ? ", " : "") + key + "=" + to_string(value);
    }
    text += "}";
  }
  if (!op.scope.empty()) text += "  # " + op.scope;
  return text;
}

}  // namespace tightloop
