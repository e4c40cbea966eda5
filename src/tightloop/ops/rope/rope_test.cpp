#include "tightloop/ops/rope/rope.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

testing::TestSlot input(const Shape& shape) {
  return {"x", {DType::f32, shape}};
}
testing::TestSlot table(int64_t rows, int64_t dim) {
  return {"table", {DType::f32, {rows, dim}}, SlotRole::constant};
}
// A position in [0, 4).
const testing::TestSlot kPos{"pos", {DType::i32, {}}, SlotRole::scalar, 1.0, 4};

TEST(Rope, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1, 1, 1, 2}, Shape{2, 3, 2, 6}, Shape{2, 33, 3, 32},
                             Shape{1, 70, 2, 128}, Shape{1, 5, 1, 80}}) {
    for (const bool inverse : {false, true}) {
      SCOPED_TRACE(to_string(shape));
      check_op({.slots = {input(shape), table(shape[1] + 5, shape[3])},
                .build =
                    [&](Builder& b) {
                      return std::vector<Value>{rope(b, b.slot("x"), b.slot("table"), {}, inverse)};
                    }},
               {.tolerance = 3e-7});
    }
  }
}

TEST(Rope, PositionMovesTheTableRows) {
  for (const uint64_t seed : {1, 2, 3}) {
    check_op({.slots = {input({2, 3, 2, 8}), table(7, 8), kPos},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{rope(b, b.slot("x"), b.slot("table"), b.slot("pos"))};
                  }},
             {.tolerance = 3e-7, .seed = seed});
  }
}

TEST(Rope, RotatesByMinusTheAngleAndInverseUndoesIt) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {1, 2, 1, 4}}, SlotRole::input});
  slots->add({"table", {DType::f32, {2, 4}}, SlotRole::constant});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value y = rope(b, b.slot("x"), b.slot("table"));
  const Value back = rope(b, y, b.slot("table"), {}, true);
  Interpreter run(program, Device::cpu);
  fill_rope_table(run.slot("table"), 100.0);
  const float x[8] = {1, 2, 3, 4, 1, 2, 3, 4};
  for (int i = 0; i < 8; ++i) run.set(run.slot("x"), i, static_cast<double>(x[i]));
  run.run();
  const auto at = [&](Value v, int i) { return run.get(run.view(v), i); };
  for (int i = 0; i < 4; ++i) EXPECT_EQ(at(y, i), static_cast<double>(x[i]));  // angle 0
  // Token 1: angles 1 and 100^(-1/2) = 0.1.
  EXPECT_NEAR(at(y, 4), std::cos(1.0) + 3 * std::sin(1.0), 1e-6);
  EXPECT_NEAR(at(y, 5), 2 * std::cos(0.1) + 4 * std::sin(0.1), 1e-6);
  EXPECT_NEAR(at(y, 6), -std::sin(1.0) + 3 * std::cos(1.0), 1e-6);
  EXPECT_NEAR(at(y, 7), -2 * std::sin(0.1) + 4 * std::cos(0.1), 1e-6);
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(at(back, i), static_cast<double>(x[i]), 1e-6);
}

TEST(Rope, TableRoundsAngleToFloat) {
  std::vector<float> f32(2000 * 8);
  std::vector<double> f64(2000 * 8);
  fill_rope_table({f32.data(), {DType::f32, {2000, 8}}}, 1e4);
  fill_rope_table({f64.data(), {DType::f64, {2000, 8}}}, 1e4);
  // j = 1: theta^(-1/4) = 0.1.
  const float angle = 1999.0f * 0.1f;
  EXPECT_EQ(f32[1999 * 8 + 1], static_cast<float>(std::cos(static_cast<double>(angle))));
  EXPECT_EQ(f32[1999 * 8 + 5], static_cast<float>(std::sin(static_cast<double>(angle))));
  EXPECT_NEAR(f64[1999 * 8 + 1], std::cos(199.9), 1e-12);
  EXPECT_NEAR(f64[1999 * 8 + 5], std::sin(199.9), 1e-12);
}

TEST(Rope, RefusesShortTablesOddHeadsAndFarPositions) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {1, 4, 1, 6}}, SlotRole::input});
  slots->add({"odd", {DType::f32, {1, 4, 1, 5}}, SlotRole::input});
  slots->add({"short", {DType::f32, {3, 6}}, SlotRole::constant});
  slots->add({"table", {DType::f32, {5, 6}}, SlotRole::constant});
  slots->add({"pos", {DType::i32, {}}, SlotRole::scalar});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { rope(b, b.slot("x"), b.slot("short")); }),
            "rope: table has shape (3, 6), expected (at least 4, 6)");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { rope(b, b.slot("odd"), b.slot("table")); }),
            "rope: head dimension is 5, expected an even number");
  rope(b, b.slot("x"), b.slot("table"), b.slot("pos"));
  Interpreter run(program, Device::cpu);
  run.set(run.slot("pos"), 0, 2);
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { run.run(); }),
            "rope: positions 2 to 5 are not in a table of 5 rows");
  run.set(run.slot("pos"), 0, -1);
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { run.run(); }),
            "rope: positions -1 to 2 are not in a table of 5 rows");
}

}  // namespace
}  // namespace tightloop
