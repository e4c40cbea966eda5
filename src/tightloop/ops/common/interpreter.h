#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/program.h"

namespace tightloop {

/// Runs a Program op by op with memory of its own for every value: no plan, no aliasing, no reuse.
/// The slow, obvious way, against which operations, rewrites and the planner are tested. On the
/// reference device every float tensor is float64. On cuda the memory is page-locked memory of the
/// host, which kernels reach over the bus, so that it can be read and written here too.
class Interpreter {
 public:
  Interpreter(const Program& program, Device device);

  /// The memory of a slot or temporary (float64 on the reference device).
  TensorView view(Value v) const;
  TensorView slot(std::string_view name) const;

  /// Element access whatever the dtype.
  double get(const TensorView& t, int64_t i) const { return get_element(t, i); }
  void set(const TensorView& t, int64_t i, double value) const { set_element(t, i, value); }

  void run();

 private:
  const Program& program_;
  Device device_;
  using Memory = std::unique_ptr<std::byte, void (*)(std::byte*)>;
  Memory allocate(int64_t bytes) const;

  std::vector<Memory> memory_;
  std::vector<TensorView> slots_;
  std::vector<TensorView> temps_;
};

}  // namespace tightloop
