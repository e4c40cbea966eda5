#include "tightloop/ops/softcap/softcap.h"

#include "tightloop/ops/common/op_testing.h"
#include "tightloop/ops/common/simd.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Softcap, CpuMatchesRefAndFiniteDifferences) {
  // Inputs far below the cap (where tanh is nearly linear), and around it.
  for (const double stddev : {1e-3, 1.0, 15.0}) {
    for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{2, 7, 33}, Shape{40000}}) {
      SCOPED_TRACE(to_string(shape) + " " + std::to_string(stddev));
      check_op(
          {.slots = {{"x", {DType::f32, shape}, SlotRole::parameter, stddev}},
           .build = [](Builder& b) { return std::vector<Value>{softcap(b, b.slot("x"), 15.0)}; }},
          {.tolerance = 1e-6});
    }
  }
}

TEST(Softcap, FarAboveTheCapIsTheCap) {
  check_op({.slots = {{"x", {DType::f32, {100}}, SlotRole::parameter, 4000.0}},
            .build = [](Builder& b) { return std::vector<Value>{softcap(b, b.slot("x"), 15.0)}; }},
           {.tolerance = 1e-6, .gradients = false});
}

TEST(Softcap, TanhHasSmallRelativeErrorEverywhere) {
  double worst = 0.0;
  for (double x = 1e-6; x < 20.0; x *= 1.0007) {
    for (const double sign : {1.0, -1.0}) {
      const auto z = static_cast<float>(sign * x);
      const double exact = std::tanh(static_cast<double>(z));
      worst = std::max(worst, std::abs(static_cast<double>(tanh_approx(z)) / exact - 1.0));
    }
  }
  EXPECT_LE(worst, 4e-7);
  EXPECT_EQ(tanh_approx(0.0f), 0.0f);
  EXPECT_EQ(tanh_approx(1e30f), 1.0f);
  EXPECT_EQ(tanh_approx(-1e30f), -1.0f);
}

TEST(Softcap, RefusesACapThatIsNotPositive) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { softcap(b, b.slot("x"), 0.0); }),
            "softcap: cap is 0, expected a positive number");
}

}  // namespace
}  // namespace tightloop
