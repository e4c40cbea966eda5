#include "tightloop/ops/qknorm_rope/qknorm_rope.h"

#include <cstring>

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
  // Heads of a token are taken a few at a time on cuda: numbers of them that do and do not divide.
  for (const Shape& shape :
       {Shape{1, 1, 1, 4}, Shape{2, 3, 2, 6}, Shape{2, 33, 3, 32}, Shape{1, 70, 2, 128},
        Shape{1, 5, 1, 80}, Shape{1, 3, 2, 320}, Shape{1, 3, 2, 70}, Shape{2, 7, 5, 64},
        Shape{3, 5, 6, 128}, Shape{1, 3, 7, 256}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {input(shape), table(shape[1], shape[3])}, .build = [](Builder& b) {
                return std::vector<Value>{
                    qknorm_rope(b, b.slot("x"), b.slot("table"), {}, 1e-6, 1.2)[0]};
              }});
  }
}

/// Forward and backward in bf16 on cuda, twice, against the reference; the backward from slots of
/// its own, so that nothing but its results is rounded.
void check_bf16_on_cuda(const Shape& shape) {
  SCOPED_TRACE(to_string(shape));
  const testing::TestProgram test{.slots = {{"x", {DType::bf16, shape}},
                                            {"dy", {DType::bf16, shape}},
                                            {"y", {DType::bf16, shape}},
                                            {"rstd", {DType::f32, {shape.rows()}}},
                                            table(shape[1], shape[3])}};
  auto slots = std::make_shared<SlotTable>();
  for (const auto& slot : test.slots) slots->add({slot.name, slot.type, slot.role});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value angles = b.slot("table");
  std::vector<Value> results = qknorm_rope(b, b.slot("x"), angles, {}, 1e-6, 1.2);
  results.push_back(b.emit1("qknorm_rope_bwd",
                            {b.slot("dy"), b.slot("y"), b.slot("rstd"), angles, Value{}},
                            {{"scale", 1.2}}));
  Interpreter ref(program, Device::ref), one(program, Device::cuda), two(program, Device::cuda);
  for (const Interpreter* run : {&ref, &one, &two}) testing::fill_slots(*run, test, 5);
  ref.run(), one.run(), two.run();
  for (size_t i = 0; i < results.size(); ++i) {
    const TensorView x = one.view(results[i]);
    EXPECT_LE(testing::scaled_error(one, x, ref, ref.view(results[i])), i == 1 ? 2e-6 : 4e-3) << i;
    EXPECT_EQ(std::memcmp(x.data, two.view(results[i]).data, static_cast<size_t>(x.bytes())), 0)
        << i;
  }
}

// Heads of 32 to 512 in 16 bytes a lane; 528 is beyond a warp, halves of 18 are no whole packs.
TEST(QknormRope, Bf16OnCudaIsCloseToRefAndRepeatsItsBits) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (const Shape& shape :
       {Shape{2, 9, 6, 128}, Shape{1, 5, 10, 128}, Shape{2, 3, 5, 32}, Shape{3, 41, 1, 80},
        Shape{1, 3, 4, 256}, Shape{1, 2, 7, 512}, Shape{1, 2, 3, 528}, Shape{1, 3, 2, 36}})
    check_bf16_on_cuda(shape);
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
