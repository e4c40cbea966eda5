#include "tightloop/ops/smear/smear.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

struct SmearCase {
  Shape x;
  int64_t m;
};

TEST(Smear, CpuMatchesRefAndFiniteDifferences) {
  for (const SmearCase& c :
       {SmearCase{{1, 1, 4}, 2}, SmearCase{{2, 5, 3}, 3}, SmearCase{{3, 33, 70}, 24},
        SmearCase{{2, 70, 65}, 40}, SmearCase{{2, 5, 200}, 24}, SmearCase{{2, 5, 264}, 40},
        SmearCase{{2, 3, 600}, 24}}) {
    SCOPED_TRACE(to_string(c.x));
    check_op({.slots = {{"x", {DType::f32, c.x}},
                        {"w", {DType::f32, {1, c.m}}, SlotRole::parameter, 0.3},
                        {"lambda", {DType::f32, {1}}}},
              .build =
                  [](Builder& b) {
                    return std::vector<Value>{smear(b, b.slot("x"), b.slot("w"), b.slot("lambda"))};
                  }},
             {.tolerance = 1e-5});
  }
}

// One sequence in one piece, and the same sequence in pieces of other lengths: same bits.
TEST(SmearCached, PiecesGiveTheSameBitsAsTheWhole) {
  constexpr int64_t kBatch{3}, kTokens{11}, kCols{37}, kM{12};
  std::vector<float> x(kBatch * kTokens * kCols), w(kM), lambda{0.7f}, whole(x.size());
  Rng rng(4, 0);
  for (std::vector<float>* v : {&x, &w})
    for (float& e : *v) e = static_cast<float>(rng.normal());
  const Type weights{DType::f32, {1, kM}}, one{DType::f32, {1}};
  const Type all{DType::f32, {kBatch, kTokens, kCols}};
  smear_fwd({}, {.x = {x.data(), all},
                 .w = {w.data(), weights},
                 .lambda = {lambda.data(), one},
                 .y = {whole.data(), all}});
  std::vector<float> prev(kBatch * kCols, 1e30f);  // not read at position 0
  int32_t pos = 0;
  for (const int64_t length : {int64_t{1}, int64_t{1}, int64_t{6}, int64_t{3}}) {
    std::vector<float> piece, y(static_cast<size_t>(kBatch * length * kCols));
    for (int64_t b = 0; b < kBatch; ++b) {
      const float* from = x.data() + (b * kTokens + pos) * kCols;
      piece.insert(piece.end(), from, from + length * kCols);
    }
    const Type type{DType::f32, {kBatch, length, kCols}};
    smear_cached(Exec{}, {.x = {piece.data(), type},
                          .w = {w.data(), weights},
                          .lambda = {lambda.data(), one},
                          .pos = {&pos, {DType::i32, {}}},
                          .prev = {prev.data(), {DType::f32, {kBatch, kCols}}},
                          .y = {y.data(), type}});
    for (int64_t b = 0; b < kBatch; ++b) {
      EXPECT_EQ(
          std::memcmp(y.data() + b * length * kCols, whole.data() + (b * kTokens + pos) * kCols,
                      static_cast<size_t>(length * kCols) * sizeof(float)),
          0)
          << "row " << b << " position " << pos;
    }
    pos += static_cast<int32_t>(length);
  }
}

TEST(SmearCached, CpuMatchesRef) {
  const int64_t positions = 2;  // position 0 or 1, by the seed
  for (const uint64_t seed : {1, 2, 3, 4}) {
    check_op({.slots = {{"x", {DType::f32, {2, 3, 20}}, SlotRole::input},
                        {"w", {DType::f32, {1, 5}}},
                        {"lambda", {DType::f32, {1}}},
                        {"pos", {DType::i32, {}}, SlotRole::scalar, 1.0, positions},
                        {"prev", {DType::f32, {2, 20}}, SlotRole::cache}},
              .build =
                  [](Builder& b) {
                    const Value y = smear_cached(b, b.slot("x"), b.slot("w"), b.slot("lambda"),
                                                 b.slot("pos"), b.slot("prev"));
                    return std::vector<Value>{y, b.slot("prev")};
                  }},
             {.gradients = false, .seed = seed});
  }
}

TEST(SmearBwd, SameBitsForAnyThreadCount) {
  constexpr int64_t kTokens{101}, kCols{29}, kM{24};
  std::vector<float> x(2 * kTokens * kCols), dy(x.size()), w(kM), lambda{0.5f};
  Rng rng(9, 0);
  for (std::vector<float>* v : {&x, &dy, &w})
    for (float& e : *v) e = static_cast<float>(rng.normal());
  const Type all{DType::f32, {2, kTokens, kCols}}, weights{DType::f32, {1, kM}};
  const Type one{DType::f32, {1}};
  const auto run = [&](int threads) {
    const int before = thread_count();
    set_thread_count(threads);
    std::vector<float> dx(x.size()), dw(kM), dlambda{0.0f};
    std::vector<double> scratch(64 * (kM + 1));
    smear_bwd({Device::cpu, std::as_writable_bytes(std::span(scratch))},
              {.dy = {dy.data(), all},
               .x = {x.data(), all},
               .w = {w.data(), weights},
               .lambda = {lambda.data(), one},
               .dx = {dx.data(), all},
               .dw = {dw.data(), weights},
               .dlambda = {dlambda.data(), one}});
    set_thread_count(before);
    dx.insert(dx.end(), dw.begin(), dw.end());
    dx.push_back(dlambda[0]);
    return dx;
  };
  const std::vector<float> few = run(1), many = run(5);
  EXPECT_EQ(std::memcmp(few.data(), many.data(), few.size() * sizeof(float)), 0);
}

TEST(Smear, RefusesAGateWiderThanTheModelAndANegativePosition) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 3, 4}}, SlotRole::parameter});
  slots->add({"w", {DType::f32, {1, 5}}, SlotRole::parameter});
  slots->add({"lambda", {DType::f32, {1}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] { smear(b, b.slot("x"), b.slot("w"), b.slot("lambda")); }),
            "smear: w has shape (1, 5), expected (1, m) with m up to 4");

  std::vector<float> x(4), w(2), lambda(1), prev(4), y(4);
  const int32_t pos = -3;
  const Type row{DType::f32, {1, 1, 4}};
  EXPECT_EQ(testing::error_of(ErrorKind::data,
                              [&] {
                                smear_cached(Exec{}, {.x = {x.data(), row},
                                                      .w = {w.data(), {DType::f32, {1, 2}}},
                                                      .lambda = {lambda.data(), {DType::f32, {1}}},
                                                      .pos = {&pos, {DType::i32, {}}},
                                                      .prev = {prev.data(), {DType::f32, {1, 4}}},
                                                      .y = {y.data(), row}});
                              }),
            "smear_cached: pos is -3, expected 0 or more");
}

}  // namespace
}  // namespace tightloop
