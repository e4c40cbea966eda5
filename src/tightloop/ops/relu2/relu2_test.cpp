#include "tightloop/ops/relu2/relu2.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Relu2, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{2, 7, 33}, Shape{40000}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"x", {DType::f32, shape}}},
              .build = [](Builder& b) { return std::vector<Value>{relu2(b, b.slot("x"))}; }},
             {.tolerance = 3e-7});
  }
}

TEST(Relu2, BackwardRefusesAnotherShape) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"y", {DType::f32, {4, 2}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] {
                                b.emit1("relu2_bwd", {b.slot("x"), b.slot("y")});
                              }),
            "relu2_bwd: x has shape (4, 2), expected (2, 4)");
}

}  // namespace
}  // namespace tightloop
