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
/// Bytes of scratch the operation needs for these types (on the CPU also: and the current thread
/// count).
using ScratchFn = int64_t (*)(const OpTypes& types, const Attrs& attrs);

/// Everything known of one operation: its definition for the Program, and how to run it.
struct OpEntry {
  OpDef def;
  RunFn run = nullptr;
  ScratchFn scratch = nullptr;       // on cpu and ref; null: none
  ScratchFn scratch_cuda = nullptr;  // on cuda; null: none

  int64_t scratch_bytes(Device device, const OpTypes& types, const Attrs& attrs) const {
    const ScratchFn needed = device == Device::cuda ? scratch_cuda : scratch;
    return needed == nullptr ? 0 : needed(types, attrs);
  }
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

/// What row statistics (rstd, lse, …) of a tensor are stored as: never narrower than f32.
inline DType statistics_dtype(DType dtype) {
  return dtype == DType::bf16 ? DType::f32 : dtype;
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
