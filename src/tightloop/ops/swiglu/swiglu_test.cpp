#include "tightloop/ops/swiglu/swiglu.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Swiglu, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{2, 7, 33}, Shape{40000}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"gate", {DType::f32, shape}, SlotRole::parameter, 3.0},
                        {"up", {DType::f32, shape}}},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{swiglu(b, b.slot("gate"), b.slot("up"))};
                  }},
             {.tolerance = 1e-6});
  }
}

TEST(Swiglu, LargeGatesStayFinite) {
  check_op(
      {.slots = {{"gate", {DType::f32, {64}}, SlotRole::parameter, 200.0},
                 {"up", {DType::f32, {64}}}},
       .build =
           [](Builder& b) { return std::vector<Value>{swiglu(b, b.slot("gate"), b.slot("up"))}; }},
      {.tolerance = 1e-6});
}

TEST(Swiglu, OnlyUpNeedsAGradient) {
  check_op(
      {.slots = {{"gate", {DType::f32, {3, 4}}, SlotRole::constant}, {"up", {DType::f32, {3, 4}}}},
       .build =
           [](Builder& b) { return std::vector<Value>{swiglu(b, b.slot("gate"), b.slot("up"))}; }},
      {.tolerance = 1e-6});
}

TEST(Swiglu, RefusesUnequalShapes) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"g", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"u", {DType::f32, {2, 3}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { swiglu(b, b.slot("g"), b.slot("u")); }),
            "swiglu: up has shape (2, 3), expected (2, 4)");
}

}  // namespace
}  // namespace tightloop
