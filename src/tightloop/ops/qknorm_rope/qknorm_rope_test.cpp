#include "tightloop/ops/qknorm_rope/qknorm_rope.h"

#include "tightloop/ops/common/op_testing.h"
#include "tightloop/ops/rmsnorm/rmsnorm.h"
#include "tightloop/ops/rope/rope.h"

namespace tightloop {
namespace {

using testing::check_op;

testing::TestSlot input(const Shape& shape) {
  return {"x", {DType::f32, shape}};
}
testing::TestSlot table(int64_t rows, int64_t dim) {
  return {"table", {DType::f32, {rows, dim}}, SlotRole::constant};
}

TEST(QknormRope, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape :
       {Shape{1, 1, 1, 4}, Shape{2, 3, 2, 6}, Shape{2, 33, 3, 32}, Shape{1, 70, 2, 128},
        Shape{1, 5, 1, 80}, Shape{1, 3, 2, 320}, Shape{1, 3, 2, 70}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {input(shape), table(shape[1], shape[3])}, .build = [](Builder& b) {
                return std::vector<Value>{
                    qknorm_rope(b, b.slot("x"), b.slot("table"), {}, 1e-6, 1.2)[0]};
              }});
  }
}

TEST(QknormRope, RstdAndPositions) {
  const testing::TestSlot pos{"pos", {DType::i32, {}}, SlotRole::scalar, 1.0, 4};
  for (const uint64_t seed : {1, 2, 3}) {
    check_op({.slots = {input({2, 3, 2, 8}), table(7, 8), pos},
              .build =
                  [](Builder& b) {
                    return qknorm_rope(b, b.slot("x"), b.slot("table"), b.slot("pos"), 1e-6);
                  }},
             {.gradients = false, .seed = seed});
    check_op({.slots = {input({2, 3, 2, 8}), table(7, 8), pos},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{
                        qknorm_rope(b, b.slot("x"), b.slot("table"), b.slot("pos"), 1e-6)[0]};
                  }},
             {.seed = seed});
  }
}

TEST(QknormRope, IsRopeThenRmsnorm) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 5, 3, 16}}, SlotRole::parameter});
  slots->add({"table", {DType::f32, {9, 16}}, SlotRole::constant});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value fused = qknorm_rope(b, b.slot("x"), b.slot("table"), {}, 1e-3, 1.2)[0];
  const Value plain = rmsnorm(b, rope(b, b.slot("x"), b.slot("table")), {}, 1e-3, 1.2);
  Interpreter run(program, Device::ref);
  fill_rope_table(run.slot("table"), 1e4);
  for (int64_t i = 0; i < 2 * 5 * 3 * 16; ++i)
    run.set(run.slot("x"), i, std::sin(static_cast<double>(i)));
  run.run();
  EXPECT_LE(testing::scaled_error(run, run.view(fused), run, run.view(plain)), 1e-14);
}

TEST(QknormRope, RefusesAnotherTable) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {1, 4, 1, 6}}, SlotRole::input});
  slots->add({"table", {DType::f32, {9, 8}}, SlotRole::constant});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] { qknorm_rope(b, b.slot("x"), b.slot("table"), {}, 1e-6); }),
            "qknorm_rope: table has shape (9, 8), expected (at least 4, 6)");
}

}  // namespace
}  // namespace tightloop
