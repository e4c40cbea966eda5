#include "tightloop/ops/common/interpreter.h"

#include <new>

#include "tightloop/core/cuda_device.h"

namespace tightloop {
namespace {

constexpr std::align_val_t kAlign{256};

void free_host(std::byte* memory) {
  ::operator delete[](memory, kAlign);
}

}  // namespace

Interpreter::Memory Interpreter::allocate(int64_t bytes) const {
  const int64_t needed = std::max<int64_t>(bytes, 1);
  if (device_ == Device::cuda) return {cuda::allocate_pinned(needed), cuda::release_pinned};
  auto* memory = static_cast<std::byte*>(::operator new[](static_cast<size_t>(needed), kAlign));
  std::fill_n(memory, needed, std::byte{0});
  return {memory, free_host};
}

Interpreter::Interpreter(const Program& program, Device device)
    : program_(program), device_(device) {
  const auto own = [&](const Type& type) {
    const Type stored = type_on(device, type);
    memory_.push_back(allocate(stored.bytes()));
    return TensorView{memory_.back().get(), stored};
  };
  for (const Slot& slot : program.slots().all()) slots_.push_back(own(slot.type));
  for (int32_t id = 0; id < program.value_count(); ++id) {
    const ValueInfo& info = program.info(Value{id});
    temps_.push_back(info.slot ? TensorView{} : own(info.type));
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
    const int64_t scratch_bytes = entry.scratch_bytes(device_, types, op.attrs);
    const Memory scratch = allocate(scratch_bytes);
    inputs.clear(), outputs.clear(), updates.clear();
    for (Value v : op.inputs) inputs.push_back(view(v));
    for (Value v : op.outputs) outputs.push_back(view(v));
    for (Value v : op.updates) updates.push_back(view(v));
    const Exec exec{.device = device_,
                    .scratch = {scratch.get(), static_cast<size_t>(scratch_bytes)},
                    .stream = device_ == Device::cuda ? cuda::stream() : nullptr};
    entry.run(exec, {inputs, outputs, updates, op.attrs});
    if (device_ == Device::cuda) cuda::synchronize();
  }
}

}  // namespace tightloop
