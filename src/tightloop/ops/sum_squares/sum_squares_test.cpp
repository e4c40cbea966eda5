#include "tightloop/ops/sum_squares/sum_squares.h"

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(SumSquares, MatchesRef) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{31, 33}, Shape{300, 1001}}) {
      SCOPED_TRACE(to_string(Type{dtype, shape}));
      check_op({.slots = {{"x", {dtype, shape}}, {"acc", {DType::f64, {}}, SlotRole::scalar}},
                .build =
                    [](Builder& b) {
                      sum_squares(b, {b.slot("x")}, b.slot("acc"));
                      sum_squares(b, {b.slot("x")}, b.slot("acc"));
                      return std::vector<Value>{b.slot("acc")};
                    }},
               {.tolerance = 1e-12, .gradients = false});
    }
  }
}

// Tensors of a piece and less, of none, and of more than a piece with an odd rest.
TEST(SumSquares, AddsAllTensorsOfACall) {
  const int64_t sizes[] = {16384, 5, 0, 40003, 1, 16385};
  std::vector<testing::TestSlot> slots{{"acc", {DType::f64, {}}, SlotRole::scalar}};
  for (const int64_t n : sizes)
    slots.push_back({fmt::format("x{}", n), {DType::f32, {n}}, SlotRole::input});
  check_op({.slots = slots,
            .build =
                [&](Builder& b) {
                  std::vector<Value> x;
                  for (const int64_t n : sizes) x.push_back(b.slot(fmt::format("x{}", n)));
                  sum_squares(b, x, b.slot("acc"));
                  return std::vector<Value>{b.slot("acc")};
                }},
           {.tolerance = 1e-12, .gradients = false});
}

TEST(SumSquares, SameBitsForAnyThreadCount) {
  std::vector<float> x(100003);
  Rng rng(2, 0);
  for (float& v : x) v = static_cast<float>(rng.normal());
  const auto run = [&](int threads) {
    const int before = thread_count();
    set_thread_count(threads);
    double acc = 1.0;
    std::vector<double> scratch(256);
    const ConstTensorView view{x.data(), {DType::f32, {static_cast<int64_t>(x.size())}}};
    sum_squares({Device::cpu, std::as_writable_bytes(std::span(scratch))},
                {.x = {&view, 1}, .acc = {&acc, {DType::f64, {}}}});
    set_thread_count(before);
    return acc;
  };
  EXPECT_EQ(run(1), run(7));
}

TEST(SumSquares, RefusesAnF32Accumulator) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2}}, SlotRole::parameter});
  slots->add({"acc", {DType::f32, {}}, SlotRole::scalar});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(
      testing::error_of(ErrorKind::dtype, [&] { sum_squares(b, {b.slot("x")}, b.slot("acc")); }),
      "sum_squares: acc is f32, expected f64");
}

}  // namespace
}  // namespace tightloop
