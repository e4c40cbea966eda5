#include "tightloop/ops/scaled_add/scaled_add.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

TEST(ScaledAdd, CpuMatchesRefAndFiniteDifferences) {
  for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{2, 7, 97}, Shape{70, 193}}) {
    SCOPED_TRACE(to_string(shape));
    check_op({.slots = {{"x", {DType::f32, shape}},
                        {"z", {DType::f32, shape}},
                        {"a", {DType::f32, {4}}},
                        {"b", {DType::f32, {2}}}},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{
                        scaled_add(b, b.slot("x"), b.slot("z"), {.vector = b.slot("a"), .index = 3},
                                   {.vector = b.slot("b"), .index = 1, .constant = -0.5})};
                  }},
             {.tolerance = 1e-5});  // da and db are sums that nearly cancel
  }
}

TEST(ScaledAdd, EitherFactorMayBeAConstant) {
  for (const int given : {0, 1, 2}) {
    SCOPED_TRACE(given);
    check_op(
        {.slots = {{"x", {DType::f32, {9, 33}}},
                   {"z", {DType::f32, {9, 33}}},
                   {"v", {DType::f32, {2}}}},
         .build =
             [&](Builder& b) {
               const Value x = b.slot("x"), z = b.slot("z"), v = b.slot("v");
               if (given == 0)
                 return std::vector<Value>{mul(b, scaled_add(b, x, z, {.constant = 0.25}, {}), x)};
               if (given == 1)
                 return std::vector<Value>{
                     scaled_add(b, x, z, {.vector = v, .index = 1}, {.constant = -1.0})};
               return std::vector<Value>{scaled_add(b, x, z, {}, {.vector = v})};
             }},
        {.tolerance = 1e-5});
  }
}

// Two layers share one vector, and x is used again: gradients add.
TEST(ScaledAdd, GradientsOfSharedOperandsAdd) {
  check_op({.slots = {{"x", {DType::f32, {6, 20}}},
                      {"z", {DType::f32, {6, 20}}},
                      {"a", {DType::f32, {2}}}},
            .build =
                [](Builder& b) {
                  const Value a = b.slot("a");
                  Value y = scaled_add(b, b.slot("x"), b.slot("z"), {.vector = a, .index = 0}, {});
                  y = scaled_add(b, y, b.slot("x"), {.vector = a, .index = 1}, {});
                  return std::vector<Value>{y};
                }},
           {.tolerance = 1e-5});
}

TEST(ScaledAddBwd, SameBitsForAnyThreadCount) {
  constexpr int64_t kCount{50001};
  std::vector<float> dy(kCount), x(kCount), z(kCount), a{1.5f}, b{0.5f};
  Rng rng(5, 0);
  for (int64_t i = 0; i < kCount; ++i) {
    const auto at = static_cast<size_t>(i);
    dy[at] = static_cast<float>(rng.normal());
    x[at] = static_cast<float>(rng.normal());
    z[at] = static_cast<float>(rng.normal());
  }
  const Type type{DType::f32, {kCount}}, one{DType::f32, {1}};
  const auto run = [&](int threads) {
    const int before = thread_count();
    set_thread_count(threads);
    std::vector<float> dx(kCount), dz(kCount), da{0.0f}, db{0.0f};
    std::vector<double> scratch(128);
    scaled_add_bwd({Device::cpu, std::as_writable_bytes(std::span(scratch))},
                   {.dy = {dy.data(), type},
                    .x = {x.data(), type},
                    .z = {z.data(), type},
                    .a = {a.data(), one},
                    .b = {b.data(), one},
                    .dx = {dx.data(), type},
                    .dz = {dz.data(), type},
                    .da = {da.data(), one},
                    .db = {db.data(), one}});
    set_thread_count(before);
    dx.push_back(da[0]);
    dx.push_back(db[0]);
    return dx;
  };
  const std::vector<float> few = run(1), many = run(7);
  EXPECT_EQ(std::memcmp(few.data(), many.data(), few.size() * sizeof(float)), 0);
}

TEST(ScaledAdd, InPlaceGivesTheSameBits) {
  constexpr int64_t kCount{3000};
  std::vector<float> x(kCount), z(kCount), dy(kCount), y(kCount), dx(kCount), dz(kCount);
  Rng rng(7, 0);
  for (std::vector<float>* v : {&x, &z, &dy})
    for (float& e : *v) e = static_cast<float>(rng.normal());
  const Type type{DType::f32, {kCount}}, one{DType::f32, {1}};
  const auto bytes = static_cast<size_t>(kCount) * sizeof(float);
  const auto backward = [&](std::vector<float>& dx_to) {
    std::vector<float> a{2.0f}, da{0.0f};
    std::vector<double> scratch(128);
    scaled_add_bwd({Device::cpu, std::as_writable_bytes(std::span(scratch))},
                   {.dy = {dy.data(), type},
                    .x = {x.data(), type},
                    .z = {},
                    .a = {a.data(), one},
                    .b = {},
                    .dx = {dx_to.data(), type},
                    .dz = {dz.data(), type},
                    .da = {da.data(), one},
                    .db = {}});
    return da[0];
  };
  const float da = backward(dx);
  EXPECT_EQ(backward(dy), da);
  EXPECT_EQ(std::memcmp(dx.data(), dy.data(), bytes), 0);

  const auto forward = [&](std::vector<float>& to) {
    scaled_add_fwd({}, {.x = {x.data(), type},
                        .z = {z.data(), type},
                        .a = {},
                        .b = {},
                        .y = {to.data(), type},
                        .ca = 0.3,
                        .cb = -1.7});
  };
  forward(y);
  const std::vector<float> kept = x;
  forward(x);
  EXPECT_EQ(std::memcmp(y.data(), x.data(), bytes), 0);
  x = kept;
  forward(z);
  EXPECT_EQ(std::memcmp(y.data(), z.data(), bytes), 0);
}

TEST(ScaledAdd, RefusesAnIndexOutsideTheVectorAndOtherShapes) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"z", {DType::f32, {4, 2}}, SlotRole::parameter});
  slots->add({"a", {DType::f32, {3}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value x = b.slot("x");
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape,
                        [&] { scaled_add(b, x, x, {.vector = b.slot("a"), .index = 3}, {}); }),
      "scaled_add: ia is 3, but a has 3 elements");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { scaled_add(b, x, b.slot("z"), {}, {}); }),
            "scaled_add: z has shape (4, 2), expected (2, 4)");
}

}  // namespace
}  // namespace tightloop
