#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tightloop/core/cuda_device.h"
#include "tightloop/engine/memory.h"
#include "tightloop/engine/plan.h"
#include "tightloop/ops/op_entry.h"

namespace tightloop {

/// Arena and scratch that Programs use one after another; as large as the largest of them needs.
class Workspace {
 public:
  explicit Workspace(const std::vector<const Plan*>& plans);
  std::byte* arena() const { return block_.data(); }
  std::span<std::byte> scratch() const {
    return {block_.data() + arena_bytes_, static_cast<size_t>(block_.bytes() - arena_bytes_)};
  }
  int64_t bytes() const { return block_.bytes(); }

 private:
  int64_t arena_bytes_ = 0;
  MemoryBlock block_;
};

/// Time and calls of one op over the profiled runs.
struct OpProfile {
  int op = 0;
  double seconds = 0.0;
  int64_t calls = 0;
};

/// A non-finite element: where in the Program it first appeared.
struct NonFinite {
  int op = 0;
  std::string what;  // "linear in 'layer 3/mlp', output 0 f32(8, 512), element 17: nan"
};

/// Programs bound by this process so far.
int64_t programs_bound();
/// CUDA graphs captured by this process so far, one a Program, and the seconds it took.
int64_t programs_captured();
double capture_seconds();
/// Runs of Programs on cuda, after their first, that were not the launch of a graph.
int64_t graph_breaks();

/// One op as errors name it: "linear in 'layer 3/mlp' (op 12 of 'micro_step'): f32(8, 512),
/// f32(512, 512) -> f32(8, 512)".
std::string described(const Program& program, int op);

/// A Program bound to memory and kernels. run() is a loop over bound kernels: no allocation, no
/// look-up, nothing decided. On cuda it enqueues: the first run launches kernel by kernel, the
/// second captures the loop into a graph, and every later one is the launch of that graph. With
/// cuda::debug_sync() every run launches op by op and waits for each. An Error names the op it came
/// from.
class Executable {
 public:
  /// The Program is copied; slots and workspace must outlive the Executable.
  Executable(Program program, Plan plan, const SlotStore& slots, const Workspace& workspace);

  void run();
  /// Until everything that was enqueued has run: nothing to do but on cuda.
  void wait() const;
  /// As run(), timing every op.
  void run_profiled();
  const std::vector<OpProfile>& profile() const { return profile_; }
  /// As run(), but looks at every float an op wrote and stops at the first that is not finite.
  std::optional<NonFinite> run_checked();

  const Program& program() const { return program_; }
  const Plan& plan() const { return plan_; }
  /// Memory of a value while the Program runs; its content survives until the buffer is reused.
  TensorView view(Value v) const;

 private:
  void run_calls(bool wait_each = false) const;

  struct Call {
    RunFn run = nullptr;
    std::vector<ConstTensorView> inputs;
    std::vector<TensorView> outputs;
    std::vector<TensorView> updates;
    const Attrs* attrs = nullptr;
  };

  Program program_;
  Plan plan_;
  const SlotStore* slots_;
  const Workspace* workspace_;
  Exec exec_;
  std::vector<Call> calls_;
  std::vector<OpProfile> profile_;
  int64_t runs_ = 0;
  std::unique_ptr<cuda::Graph> graph_;               // on cuda
  std::vector<std::unique_ptr<cuda::Event>> marks_;  // of a profile on cuda: before and after ops
};

}  // namespace tightloop
