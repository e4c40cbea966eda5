#include "tightloop/ops/rmsnorm/rmsnorm.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Rmsnorm, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape :
       {Shape{2, 3}, Shape{3, 5}, Shape{9, 32}, Shape{4, 5, 97}, Shape{130, 768}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"x", {DType::f32, shape}}}, .build = [](Builder& b) {
                return std::vector<Value>{rmsnorm(b, b.slot("x"), {}, 1e-5, 1.2)};
              }});
  }
}

TEST(Rmsnorm, WeightGetsItsGradient) {
  for (const Shape& shape : {Shape{3, 5}, Shape{200, 48}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"x", {DType::f32, shape}}, {"w", {DType::f32, {shape.cols()}}}},
              .build = [](Builder& b) {
                return std::vector<Value>{rmsnorm(b, b.slot("x"), b.slot("w"), 1e-6)};
              }});
  }
}

// Rows that a lane of cuda keeps few or many packs of, that a block takes, and that are too long to
// keep; more rows than blocks for the weight's gradient.
TEST(Rmsnorm, LongRowsAndManyRows) {
  for (const Shape& shape :
       {Shape{9, 384}, Shape{9, 512}, Shape{9, 640}, Shape{9, 768}, Shape{5, 1000}, Shape{5, 1001},
        Shape{3, 3000}, Shape{3, 5000}, Shape{5000, 8}}) {
    for (const bool weighted : {false, true}) {
      SCOPED_TRACE(fmt::format("{} weighted {}", to_string(shape), weighted));
      std::vector<testing::TestSlot> slots{{"x", {DType::f32, shape}}};
      if (weighted) slots.push_back({"w", {DType::f32, {shape.cols()}}});
      check_op({.slots = slots,
                .build =
                    [&](Builder& b) {
                      return std::vector<Value>{
                          rmsnorm(b, b.slot("x"), weighted ? b.slot("w") : Value{}, 1e-5, 1.2)};
                    }},
               {.tolerance = 1e-5, .fd_probes = 2});
    }
  }
}

TEST(Rmsnorm, RefusesAWeightOfAnotherWidth) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"w", {DType::f32, {3}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape, [&] { rmsnorm(b, b.slot("x"), b.slot("w"), 1e-6); }),
      "rmsnorm: weight has shape (3), expected (4)");
}

}  // namespace
}  // namespace tightloop
