#include "tightloop/ops/linear/linear.h"

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(Linear, CpuMatchesRefAndFiniteDifferences) {
  for (const auto& [rows, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                   {3, 5, 7},
                                   {33, 20, 65},
                                   {70, 130, 48},
                                   {1, 96, 64},
                                   {129, 12, 96}}) {
    SCOPED_TRACE(fmt::format("rows {} N {} K {}", rows, n, k));
    check_op(
        {.slots = {{"x", {DType::f32, {rows, k}}}, {"w", {DType::f32, {n, k}}}},
         .build =
             [](Builder& b) { return std::vector<Value>{linear(b, b.slot("x"), b.slot("w"))}; }},
        {.tolerance = 5e-7 * std::sqrt(static_cast<double>(k) + 4)});
  }
}

TEST(Linear, GradientsOfSeveralReadersAddUp) {
  check_op({.slots = {{"x", {DType::f32, {6, 16}}},
                      {"w", {DType::f32, {16, 16}}},
                      {"u", {DType::f32, {24, 16}}}},
            .build =
                [](Builder& b) {
                  const Value h = linear(b, b.slot("x"), b.slot("w"));
                  return std::vector<Value>{linear(b, h, b.slot("u")), linear(b, h, b.slot("w"))};
                }},
           {.tolerance = 5e-6});
}

TEST(Linear, Bf16WeightsAreWidenedNotRounded) {
  check_op(
      {.slots = {{"x", {DType::f32, {9, 64}}}, {"w", {DType::bf16, {40, 64}}}},
       .build = [](Builder& b) { return std::vector<Value>{linear(b, b.slot("x"), b.slot("w"))}; }},
      {.tolerance = 5e-6, .gradients = false, .devices = {Device::cpu}});
}

TEST(Linear, Bf16MatchesRefOnCuda) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (const auto& [rows, K, N] : {std::array<int64_t, 3>{64, 128, 96}, {37, 40, 24}}) {
    SCOPED_TRACE(fmt::format("({}, {}) x ({}, {})", rows, K, N, K));
    // Sums are f32, but y, dx and the weights of the loss are rounded to 8 bits.
    check_op(
        {.slots = {{"x", {DType::bf16, {rows, K}}}, {"w", {DType::bf16, {N, K}}}},
         .build =
             [](Builder& b) { return std::vector<Value>{linear(b, b.slot("x"), b.slot("w"))}; }},
        {.tolerance = 4e-3, .devices = {Device::cuda}});
  }
}

// Products of bf16 are exact in f32, so only the order of the sums differs.
TEST(Linear, F32SumsOfBf16AreNotRounded) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const auto build = [](Builder& b) {
    return std::vector<Value>{linear_f32(b, b.slot("x"), b.slot("w"))};
  };
  for (const auto& [rows, K, N] : {std::array<int64_t, 3>{64, 128, 96}, {37, 40, 24}}) {
    SCOPED_TRACE(fmt::format("({}, {}) x ({}, {})", rows, K, N, K));
    const std::vector<testing::TestSlot> slots = {{"x", {DType::bf16, {rows, K}}},
                                                  {"w", {DType::bf16, {N, K}}}};
    check_op({.slots = slots, .build = build},
             {.tolerance = 5e-6, .gradients = false, .devices = {Device::cuda}});
    check_op({.slots = slots, .build = build}, {.tolerance = 4e-3, .devices = {Device::cuda}});
  }
}

TEST(Linear, GradientsOfCastParametersGoToTheirOwnSlots) {
  check_op({.slots = {{"x", {DType::f32, {5, 8}}}, {"w", {DType::f32, {6, 8}}}},
            .build =
                [](Builder& b) {
                  return std::vector<Value>{linear(b, cast(b, b.slot("x"), DType::bf16),
                                                   cast(b, b.slot("w"), DType::bf16))};
                }},
           {.devices = {}});  // the reference against finite differences
}

TEST(Linear, Relu2FormsMatchRef) {
  const std::vector<testing::TestSlot> slots = {{"x", {DType::f32, {21, 40}}},
                                                {"w", {DType::f32, {56, 40}}},
                                                {"dz", {DType::f32, {21, 24}}},
                                                {"u", {DType::f32, {24, 56}}}};
  check_op({.slots = slots,
            .build =
                [](Builder& b) {
                  const Value y = linear_relu2(b, b.slot("x"), b.slot("w"));
                  const Value dpre = b.emit1("linear_dx_relu2", {b.slot("dz"), b.slot("u"), y});
                  return std::vector<Value>{y, dpre};
                }},
           {.tolerance = 1e-5, .gradients = false});
}

TEST(Linear, RefusesAnotherWidth) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"w", {DType::f32, {3, 5}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { linear(b, b.slot("x"), b.slot("w")); }),
            "linear: x has shape (2, 4), w has (3, 5): the last dimensions must be equal");
}

}  // namespace
}  // namespace tightloop
