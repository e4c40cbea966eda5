#include "tightloop/train/step_values.h"

#include <gtest/gtest.h>

namespace tightloop {
namespace {

struct Slots {
  std::shared_ptr<SlotTable> table = std::make_shared<SlotTable>();
  SlotId loss = table->add({"loss", {DType::f32, {1}}, SlotRole::output});
  SlotId norm = table->add({"norm", {DType::f32, {1}}, SlotRole::output});

  /// As a step would leave them.
  static void leave(const SlotStore& slots, SlotId id, double value) {
    set_element(slots.host(id), 0, value);
    slots.push(id);
  }
};

TEST(StepValues, AreThoseOfTheirStep) {
  const Slots s;
  const SlotStore slots(s.table, Device::cpu);
  StepValues values(slots, s.loss, s.norm);
  for (int step = 0; step < 3; ++step) {
    values.begin();
    Slots::leave(slots, s.loss, 10.0 + step);
    Slots::leave(slots, s.norm, 20.0 + step);
    values.end();
    const StepValues::Values got = values.take();
    EXPECT_EQ(got.loss, 10.0 + step);
    EXPECT_EQ(got.grad_sum_squares, 20.0 + step);
    EXPECT_GE(got.dt_ns, 0);
    EXPECT_EQ(values.in_flight(), 0);
  }
}

// Each is looked at when the slots hold the next one's values already.
TEST(StepValues, OnCudaStayThoseOfTheirStepWhileTheNextRuns) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const Slots s;
  const SlotStore slots(s.table, Device::cuda);
  StepValues values(slots, s.loss, s.norm);
  const int64_t syncs = cuda::synchronizations();
  const auto expect_next = [&](int step) {
    const StepValues::Values got = values.take();
    EXPECT_EQ(got.loss, 10.0 + step);
    EXPECT_EQ(got.grad_sum_squares, 20.0 + step);
    EXPECT_GE(got.dt_ns, 0);
    EXPECT_LT(got.dt_ns, 1'000'000'000);
  };
  for (int step = 0; step < 7; ++step) {
    values.begin();
    Slots::leave(slots, s.loss, 10.0 + step);
    Slots::leave(slots, s.norm, 20.0 + step);
    values.end();
    if (step > 0) expect_next(step - 1);
  }
  expect_next(6);
  // A step that none was in flight before.
  values.begin();
  Slots::leave(slots, s.loss, 17.0);
  Slots::leave(slots, s.norm, 27.0);
  values.end();
  expect_next(7);
  EXPECT_EQ(values.in_flight(), 0);
  EXPECT_EQ(cuda::synchronizations(), syncs);
}

}  // namespace
}  // namespace tightloop
