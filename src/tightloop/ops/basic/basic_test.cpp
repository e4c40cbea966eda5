#include "tightloop/ops/basic/basic.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Basic, SumsProductsAndShapesMatchRef) {
  check_op({.slots = {{"x", {DType::f32, {7, 33}}}, {"y", {DType::f32, {7, 33}}}},
            .build = [](Builder& b) {
              const Value x = b.slot("x"), y = b.slot("y");
              const Value z = add(b, mul(b, x, y), x);
              return std::vector<Value>{reshape(b, z, {3, 77}), sum(b, mul(b, z, z))};
            }});
}

TEST(Basic, SumOfManyBlocksRepeats) {
  check_op({.slots = {{"x", {DType::f32, {40000}}}},
            .build = [](Builder& b) { return std::vector<Value>{sum(b, b.slot("x"))}; }},
           {.tolerance = 1e-4});  // the sum of 40,000 signed values nearly cancels
}

// More than a launch takes on cuda, one of them longer than a block takes.
TEST(Basic, CastsManyTensorsAtOnce) {
  check_op({.slots = {{"x", {DType::f32, {7, 9}}}, {"y", {DType::f32, {130, 160}}}},
            .build =
                [](Builder& b) {
                  const Value y = b.slot("y");
                  std::vector<Value> all(130, b.slot("x"));
                  all[1] = mul(b, y, y);
                  const std::vector<Value> narrow =
                      b.emit("cast", all, {{"dtype", static_cast<int64_t>(DType::bf16)}});
                  return std::vector<Value>{narrow[0], narrow[1], narrow[129]};
                }},
           {.tolerance = 4e-3});
}

TEST(Basic, ReshapeRefusesAnotherCount) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 3}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { reshape(b, b.slot("x"), {7}); }),
            "reshape: (2, 3) has 6 elements, (7) has 7");
}

}  // namespace
}  // namespace tightloop
