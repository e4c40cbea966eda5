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
