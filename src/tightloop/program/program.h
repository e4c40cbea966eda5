#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tightloop/program/op_def.h"

namespace tightloop {

/// Who owns a slot's content, and so how `plan` accounts for its memory.
enum class SlotRole { parameter, gradient, optimizer, cache, constant, input, scalar, output };

std::string_view name_of(SlotRole role);

/// Everything that persists between runs of a Program.
struct Slot {
  std::string name;
  Type type;
  SlotRole role = SlotRole::parameter;
};

struct SlotId {
  int32_t index = 0;
  bool operator==(const SlotId&) const = default;
};

/// The slots that several Programs (micro-step, optimizer, evaluation, …) share.
class SlotTable {
 public:
  /// Error{internal} when the name is taken.
  SlotId add(Slot slot);
  /// The slot of that name: created now, or found with equal type and role.
  SlotId add_or_find(Slot slot);
  std::optional<SlotId> find(std::string_view name) const;
  /// Error{internal} when there is none.
  SlotId get(std::string_view name) const;
  const Slot& operator[](SlotId id) const { return slots_[static_cast<size_t>(id.index)]; }
  int size() const { return static_cast<int>(slots_.size()); }
  const std::vector<Slot>& all() const { return slots_; }

 private:
  std::vector<Slot> slots_;
  std::unordered_map<std::string, int32_t> by_name_;
};

/// Handle of a value inside one Program. Default-constructed: no value.
struct Value {
  int32_t id = kNone;
  static constexpr int32_t kNone = -1;

  explicit operator bool() const { return id != kNone; }
  bool operator==(const Value&) const = default;
};

/// A temporary (assigned once, by `producer`) or a view of a slot.
struct ValueInfo {
  Type type;
  std::string name;
  std::optional<SlotId> slot;
};

/// One operation: reads inputs, assigns outputs, updates slots in place. List order is execution
/// order; an update is ordered against every other access of the same slot.
struct Op {
  const OpDef* def = nullptr;
  std::vector<Value> inputs;   // optional operands may be empty
  std::vector<Value> outputs;  // temporaries
  std::vector<Value> updates;  // slot values, read and written; optional ones may be empty
  Attrs attrs;
  std::string scope;  // where in the model: "layer 3/attn"; ends in "'" for backward work
};

/// A flat, typed list of operations with static shapes and no control flow.
class Program {
 public:
  Program(std::string name, std::shared_ptr<SlotTable> slots)
      : name_(std::move(name)), slots_(std::move(slots)) {}

  const std::string& name() const { return name_; }
  SlotTable& slots() { return *slots_; }
  const SlotTable& slots() const { return *slots_; }
  const std::shared_ptr<SlotTable>& shared_slots() const { return slots_; }

  /// The value that stands for a slot: one per slot and Program.
  Value slot_value(SlotId id);
  Value add_temp(Type type, std::string name);
  const ValueInfo& info(Value v) const { return values_[static_cast<size_t>(v.id)]; }
  const Type& type(Value v) const { return info(v).type; }
  int value_count() const { return static_cast<int>(values_.size()); }

  std::vector<Op>& ops() { return ops_; }
  const std::vector<Op>& ops() const { return ops_; }
  OpTypes types_of(const Op& op) const;

  /// Index of the op that assigns v; nullopt for slots.
  std::optional<int> producer(Value v) const;
  /// Indices of the ops that read or update v, ascending.
  std::vector<int> users(Value v) const;

  /// Every rule a Program keeps: values assigned once and before use, updates only of slots, types
  /// as inferred. Error{internal} names the op. Rewrites are checked with it.
  void validate() const;

 private:
  std::string name_;
  std::shared_ptr<SlotTable> slots_;
  std::vector<ValueInfo> values_;
  std::vector<Op> ops_;
  std::unordered_map<int32_t, int32_t> slot_values_;
};

/// One op as a line: "%7:f32(2, 8) = rmsnorm(%3) {eps=1e-06}  # layer 0/attn".
std::string to_string(const Program& program, const Op& op);

}  // namespace tightloop
