#include "tightloop/ops/common/interpreter.h"

namespace tightloop {

namespace {

constexpr size_t kAlign = 64;

std::unique_ptr<std::byte[]> allocate(size_t bytes, TensorView& view) {
  auto memory = std::make_unique<std::byte[]>(bytes + kAlign);
  void* start = memory.get();
  size_t space = bytes + kAlign;
  view.data = std::align(kAlign, bytes, start, space);
  return memory;
}

}  // namespace

Interpreter::Interpreter(const Program& program, Device device)
    : program_(program), device_(device) {
  for (const Slot& slot : program.slots().all()) {
    slots_.push_back({nullptr, type_on(device, slot.type)});
    slot_memory_.push_back(allocate(static_cast<size_t>(slots_.back().bytes()), slots_.back()));
  }
  for (int32_t id = 0; id < program.value_count(); ++id) {
    temps_.push_back({nullptr, type_on(device, program.type(Value{id}))});
    temp_memory_.push_back(nullptr);
    if (!program.info(Value{id}).slot)
      temp_memory_.back() = allocate(static_cast<size_t>(temps_.back().bytes()), temps_.back());
  }
}

TensorView Interpreter::view(Value v) const {
  if (!v) return {};
  const std::optional<SlotId>& slot = program_.info(v).slot;
  return slot ? slots_[static_cast<size_t>(slot->index)] : temps_[static_cast<size_t>(v.id)];
}

TensorView Interpreter::slot(std::string_view name) const {
  return slots_[static_cast<size_t>(program_.slots().get(name).index)];
}

void Interpreter::run() {
  std::vector<ConstTensorView> inputs;
  std::vector<TensorView> outputs, updates;
  for (const Op& op : program_.ops()) {
    const OpEntry& entry = op_entry(op.def->name);
    OpTypes types = program_.types_of(op);
    const int64_t scratch_bytes = entry.scratch == nullptr ? 0 : entry.scratch(types, op.attrs);
    TensorView scratch;
    const auto scratch_memory = allocate(static_cast<size_t>(scratch_bytes), scratch);
    inputs.clear(), outputs.clear(), updates.clear();
    for (Value v : op.inputs) inputs.push_back(view(v));
    for (Value v : op.outputs) outputs.push_back(view(v));
    for (Value v : op.updates) updates.push_back(view(v));
    const Exec exec{device_,
                    {static_cast<std::byte*>(scratch.data), static_cast<size_t>(scratch_bytes)}};
    entry.run(exec, {inputs, outputs, updates, op.attrs});
  }
}

}  // namespace tightloop
