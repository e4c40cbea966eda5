#include "tightloop/program/op_def.h"

#include <algorithm>

namespace tightloop {

const AttrValue* Attrs::find(std::string_view key) const {
  for (const auto& [name, value] : entries_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Attrs::set(std::string_view key, AttrValue value) {
  for (auto& [name, old] : entries_) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  entries_.emplace_back(std::string(key), std::move(value));
}

namespace {

template <typename T>
const T& typed(const AttrValue* value, std::string_view key) {
  if (value == nullptr) fail(ErrorKind::internal, "attribute '{}' is missing", key);
  const T* typed_value = std::get_if<T>(value);
  if (typed_value == nullptr) fail(ErrorKind::internal, "attribute '{}' has another type", key);
  return *typed_value;
}

}  // namespace

bool Attrs::flag(std::string_view key) const {
  return typed<bool>(find(key), key);
}
int64_t Attrs::integer(std::string_view key) const {
  return typed<int64_t>(find(key), key);
}
double Attrs::number(std::string_view key) const {
  return typed<double>(find(key), key);
}

std::string to_string(const AttrValue& value) {
  if (const bool* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  if (const int64_t* i = std::get_if<int64_t>(&value)) return std::to_string(*i);
  if (const double* d = std::get_if<double>(&value)) return fmt::format("{}", *d);
  return std::get<std::string>(value);
}

Cost cost_of(const OpDef& def, const OpTypes& types, const Attrs& attrs) {
  if (def.alias) return {};
  if (def.cost != nullptr) return def.cost(types, attrs);
  Cost cost;
  for (const auto& t : types.inputs) cost.bytes_read += t ? t->bytes() : 0;
  for (const auto& t : types.updates) {
    cost.bytes_read += t ? t->bytes() : 0;
    cost.bytes_written += t ? t->bytes() : 0;
  }
  for (const Type& t : types.outputs) cost.bytes_written += t.bytes();
  return cost;
}

OpTable::OpTable(std::vector<const OpDef*> defs) : defs_(std::move(defs)) {
  std::sort(defs_.begin(), defs_.end(),
            [](const OpDef* a, const OpDef* b) { return a->name < b->name; });
  for (size_t i = 1; i < defs_.size(); ++i) {
    if (defs_[i]->name == defs_[i - 1]->name)
      fail(ErrorKind::internal, "operation '{}' is defined twice", defs_[i]->name);
  }
}

const OpDef& OpTable::get(std::string_view name) const {
  const auto it = std::lower_bound(defs_.begin(), defs_.end(), name,
                                   [](const OpDef* d, std::string_view n) { return d->name < n; });
  if (it == defs_.end() || (*it)->name != name)
    fail(ErrorKind::internal, "no operation is named '{}'", name);
  return **it;
}

}  // namespace tightloop
