#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tightloop/core/exec.h"
#include "tightloop/program/op_def.h"

namespace tightloop {

/// One bound call of an operation: views in the order of the Program's operands. Optional operands
/// that are not given are empty views.
struct OpCall {
  std::span<const ConstTensorView> inputs;
  std::span<const TensorView> outputs;
  std::span<const TensorView> updates;
  const Attrs& attrs;

  ConstTensorView input(size_t i) const {
    return i < inputs.size() ? inputs[i] : ConstTensorView{};
  }
  TensorView update(size_t i) const { return i < updates.size() ? updates[i] : TensorView{}; }
};

/// Runs the operation on exec.device.
using RunFn = void (*)(const Exec& exec, const OpCall& call);
/// Scratch the operation needs on the CPU, for these types and the current thread count.
using ScratchFn = int64_t (*)(const OpTypes& types, const Attrs& attrs);

/// Everything known of one operation: its definition for the Program, and how to run it.
struct OpEntry {
  OpDef def;
  RunFn run = nullptr;
  ScratchFn scratch = nullptr;  // null: none
};

/// The definitions of all operations, for builders.
const OpTable& op_table();
/// The entry of an operation. Error{internal} for an unknown name.
const OpEntry& op_entry(std::string_view name);
/// All entries, sorted by name.
std::vector<const OpEntry*> all_op_entries();

/// The type a tensor has on a device: floats become f64 on the reference device.
inline Type type_on(Device device, const Type& type) {
  if (device == Device::ref && is_float(type.dtype)) return {DType::f64, type.shape};
  return type;
}

/// Checks shared by infer functions. `op` and `operand` go into the message.
void expect_shape(std::string_view op,
                  std::string_view operand,
                  const Type& got,
                  const Shape& want);
void expect_rank(std::string_view op, std::string_view operand, const Type& got, int rank);
void expect_float(std::string_view op, std::string_view operand, const Type& got);
void expect_dtype(std::string_view op, std::string_view operand, const Type& got, DType want);

}  // namespace tightloop
