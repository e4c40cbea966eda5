#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tightloop/core/tensor.h"

namespace tightloop {

using AttrValue = std::variant<bool, int64_t, double, std::string>;

/// The constants of one operation: windows, epsilons, flags. Small, ordered as written.
class Attrs {
 public:
  Attrs() = default;
  Attrs(std::initializer_list<std::pair<std::string, AttrValue>> entries) : entries_(entries) {}

  void set(std::string_view key, AttrValue value);
  bool has(std::string_view key) const { return find(key) != nullptr; }
  /// Error{internal} when the key is missing or holds another type.
  bool flag(std::string_view key) const;
  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  const std::vector<std::pair<std::string, AttrValue>>& entries() const { return entries_; }
  bool operator==(const Attrs&) const = default;

 private:
  const AttrValue* find(std::string_view key) const;
  std::vector<std::pair<std::string, AttrValue>> entries_;
};

std::string to_string(const AttrValue& value);

/// The types around one operation. Optional operands that are not given are nullopt.
struct OpTypes {
  std::vector<std::optional<Type>> inputs;
  std::vector<std::optional<Type>> updates;
  std::vector<Type> outputs;

  /// Type of input i; Error{internal} when it is absent.
  const Type& input(size_t i) const {
    TL_CHECK(i < inputs.size() && inputs[i].has_value());
    return *inputs[i];
  }
  const Type& update(size_t i) const {
    TL_CHECK(i < updates.size() && updates[i].has_value());
    return *updates[i];
  }
  bool has_input(size_t i) const { return i < inputs.size() && inputs[i].has_value(); }
  bool has_update(size_t i) const { return i < updates.size() && updates[i].has_value(); }
};

/// What an operation must move and compute at least: the floor of the roofline.
struct Cost {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t flops = 0;

  int64_t bytes() const { return bytes_read + bytes_written; }
  Cost& operator+=(const Cost& other) {
    bytes_read += other.bytes_read;
    bytes_written += other.bytes_written;
    flops += other.flops;
    return *this;
  }
};

class VjpContext;

/// What the Program layer knows of an operation: types, gradient and cost. No kernel.
struct OpDef {
  std::string_view name;
  /// Output types from operand types. Error{shape|dtype} naming the operand, what it got and
  /// expected.
  std::vector<Type> (*infer)(const OpTypes& types, const Attrs& attrs) = nullptr;
  /// Vector-Jacobian rule: emits the backward operations. Null: gradients do not flow through.
  void (*vjp)(VjpContext& ctx) = nullptr;
  /// Null: every operand is moved once (updates twice), no FLOPs.
  Cost (*cost)(const OpTypes& types, const Attrs& attrs) = nullptr;
  /// {output, input} pairs that may share memory when the input is not used afterwards.
  std::vector<std::pair<int, int>> inplace = {};
  /// The output is the input seen under another shape: no work, no memory.
  bool alias = false;
};

Cost cost_of(const OpDef& def, const OpTypes& types, const Attrs& attrs);

/// Name -> definition. Filled by `ops`, given to whoever builds Programs.
class OpTable {
 public:
  explicit OpTable(std::vector<const OpDef*> defs);
  /// Error{internal} for an unknown name.
  const OpDef& get(std::string_view name) const;
  const std::vector<const OpDef*>& all() const { return defs_; }

 private:
  std::vector<const OpDef*> defs_;  // sorted by name
};

}  // namespace tightloop
