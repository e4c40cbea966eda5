#include "tightloop/engine/executable.h"

#include <algorithm>

#include "tightloop/core/unit_testing.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/relu2/relu2.h"

namespace tightloop {
namespace {

std::vector<Device> devices() {
  std::vector<Device> all{Device::ref, Device::cpu};
  if (cuda::device_count() > 0) all.push_back(Device::cuda);
  return all;
}

/// sum += relu2(x)
struct Summing {
  static constexpr int64_t kElems = 1000;
  std::shared_ptr<SlotTable> table = std::make_shared<SlotTable>();
  Program program{"summing", table};

  explicit Summing(DType dtype = DType::f32) {
    table->add({"x", {dtype, {kElems}}, SlotRole::input});
    table->add({"sum", {dtype, {kElems}}, SlotRole::output});
    Builder b(program, op_table());
    b.set_scope("layer 3/mlp");
    store(b, relu2(b, b.slot("x")), b.slot("sum"), true);
  }
};

/// The sum after four runs on 1, 2, 3 and 4, with nothing waited for between them.
double four_runs(Device device) {
  Summing s;
  const Plan plan = make_plan(s.program, device);
  const SlotStore slots(s.table, device);
  const Workspace workspace({&plan});
  Executable run(s.program, plan, slots, workspace);
  for (int i = 1; i <= 4; ++i) {
    const TensorView x = slots.host("x");
    for (int64_t e = 0; e < x.elems(); ++e) set_element(x, e, i);
    slots.push("x");
    run.run();
  }
  const TensorView sum = slots.pull("sum");
  for (int64_t e = 1; e < sum.elems(); ++e)
    EXPECT_EQ(get_element(sum, e), get_element(sum, 0)) << e;
  return get_element(sum, 0);
}

// On cuda the uploads go to two places in turn, and the third run is the launch of a graph.
TEST(Executable, RunsSeeTheInputThatWasPushedBeforeThem) {
  for (Device device : devices()) {
    SCOPED_TRACE(name_of(device));
    EXPECT_EQ(four_runs(device), 1.0 + 4.0 + 9.0 + 16.0);
  }
}

TEST(Executable, DebugSyncRunsOpByOpWithTheSameResult) {
  for (Device device : devices()) {
    SCOPED_TRACE(name_of(device));
    const int64_t captured = programs_captured(), breaks = graph_breaks();
    cuda::set_debug_sync(true);
    const double sum = four_runs(device);
    cuda::set_debug_sync(false);
    EXPECT_EQ(sum, 30.0);
    EXPECT_EQ(programs_captured(), captured);
    EXPECT_EQ(graph_breaks() - breaks, device == Device::cuda ? 3 : 0);
  }
}

// Shapes are checked when a Program is built; that a kernel does not have the type shows here.
TEST(Executable, AnErrorNamesTheOperation) {
  Summing s(DType::bf16);
  const Plan plan = make_plan(s.program, Device::cpu);
  const SlotStore slots(s.table, Device::cpu);
  const Workspace workspace({&plan});
  Executable run(s.program, plan, slots, workspace);
  for (const bool debug : {false, true}) {
    cuda::set_debug_sync(debug);
    try {
      run.run();
      ADD_FAILURE() << "it ran";
    } catch (const Error& e) {
      EXPECT_EQ(e.chain().front(),
                "relu2 in 'layer 3/mlp' (op 0 of 'summing'): bf16(1000) -> bf16(1000)");
    }
    cuda::set_debug_sync(false);
  }
}

}  // namespace
}  // namespace tightloop
