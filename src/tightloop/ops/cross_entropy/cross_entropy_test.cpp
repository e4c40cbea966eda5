#include "tightloop/ops/cross_entropy/cross_entropy.h"

#include <cstring>
#include <limits>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

// Ignored rows are those whose target is 0 here: fill_slots draws targets from 0..vocab-1.
testing::TestProgram losses(const Shape& rows, int64_t cols, int64_t vocab, bool weighted) {
  Shape logits = rows;
  logits.push_back(cols);
  std::vector<testing::TestSlot> slots{
      {"logits", {DType::f32, logits}, SlotRole::parameter, 3.0},
      {"targets", {DType::i32, rows}, SlotRole::input, 1.0, vocab}};
  if (weighted) slots.push_back({"weights", {DType::f32, rows}, SlotRole::input});
  return {.slots = slots, .build = [=](Builder& b) {
            return std::vector<Value>{cross_entropy(b, b.slot("logits"), b.slot("targets"),
                                                    weighted ? b.slot("weights") : Value{},
                                                    {.vocab = vocab, .ignore_index = 0})
                                          .loss};
          }};
}

TEST(CrossEntropy, CpuMatchesRefAndFiniteDifferences) {
  check_op(losses({3}, 5, 5, false));
  check_op(losses({2, 7}, 33, 31, true));
  check_op(losses({4, 5}, 300, 257, true));
  check_op(losses({9}, 3008, 3001, false), {.fd_tolerance = 2e-6});
}

TEST(CrossEntropy, OneColumnHasNoLoss) {
  check_op({.slots = {{"logits", {DType::f32, {4, 3}}},
                      {"targets", {DType::i32, {4}}, SlotRole::input, 1.0, 1}},
            .build =
                [](Builder& b) {
                  const auto out = cross_entropy(b, b.slot("logits"), b.slot("targets"), {},
                                                 {.vocab = 1, .ignore_index = -1});
                  return std::vector<Value>{out.loss, out.lse};
                }},
           {.gradients = false});
}

struct Row {
  std::vector<float> logits, dlogits;
  std::vector<int32_t> targets;
  float loss = 0.0f, lse = 0.0f;
};

Row run_row(std::vector<float> logits, int32_t target, int64_t vocab) {
  Row row{logits, std::vector<float>(logits.size(), 7.0f), {target}};
  const Type all{DType::f32, {1, static_cast<int64_t>(logits.size())}}, one{DType::f32, {1}};
  const ConstTensorView targets(row.targets.data(), {DType::i32, {1}});
  const float dloss = 2.0f;
  cross_entropy_fwd({}, {.logits = {row.logits.data(), all},
                         .targets = targets,
                         .weights = {},
                         .loss = {&row.loss, one},
                         .lse = {&row.lse, one},
                         .vocab = vocab,
                         .ignore_index = -1});
  cross_entropy_bwd({}, {.dloss = {&dloss, one},
                         .logits = {row.logits.data(), all},
                         .targets = targets,
                         .lse = {&row.lse, one},
                         .weights = {},
                         .dlogits = {row.dlogits.data(), all},
                         .vocab = vocab,
                         .ignore_index = -1});
  return row;
}

TEST(CrossEntropy, IgnoredRowsAndPaddingGiveZeros) {
  const Row ignored = run_row({1.0f, 2.0f, 3.0f}, -1, 3);
  EXPECT_EQ(ignored.loss, 0.0f);
  EXPECT_NEAR(ignored.lse, 3.4076059f, 1e-6f);  // log(e + e^2 + e^3)
  EXPECT_EQ(ignored.dlogits, std::vector<float>(3, 0.0f));

  // Padding may hold anything, even NaN.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Row padded = run_row({0.0f, 0.0f, nan, 1e30f}, 1, 2);
  EXPECT_NEAR(padded.loss, std::log(2.0f), 1e-6f);
  EXPECT_NEAR(padded.dlogits[0], 1.0f, 1e-6f);
  EXPECT_NEAR(padded.dlogits[1], -1.0f, 1e-6f);
  EXPECT_EQ(padded.dlogits[2], 0.0f);
  EXPECT_EQ(padded.dlogits[3], 0.0f);
}

TEST(CrossEntropy, LargeLogitsNeitherOverflowNorHideANan) {
  const Row large = run_row({1e4f, -1e4f, 0.0f}, 1, 3);
  EXPECT_EQ(large.lse, 1e4f);
  EXPECT_EQ(large.loss, 2e4f);
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> logits(100, 0.5f);
    logits[70] = std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
    EXPECT_TRUE(std::isnan(run_row(logits, 3, 100).loss));
  }
}

TEST(CrossEntropy, GradientInPlaceAndForAnyThreadCountHasTheSameBits) {
  constexpr int64_t kRows{21}, kCols{515}, kVocab{510};
  std::vector<float> logits(kRows * kCols), dloss(kRows), lse(kRows), loss(kRows);
  std::vector<int32_t> targets(kRows);
  Rng rng(8, 0);
  for (float& v : logits) v = static_cast<float>(3.0 * rng.normal());
  for (float& v : dloss) v = static_cast<float>(rng.normal());
  for (int32_t& t : targets) t = static_cast<int32_t>(rng.below(kVocab)) - 1;
  const Type all{DType::f32, {kRows, kCols}}, rows{DType::f32, {kRows}};
  const auto run = [&](int threads, bool in_place) {
    const int before = thread_count();
    set_thread_count(threads);
    std::vector<float> x = logits, d(logits.size());
    const ConstTensorView t(targets.data(), {DType::i32, {kRows}});
    cross_entropy_fwd({}, {.logits = {x.data(), all},
                           .targets = t,
                           .weights = {},
                           .loss = {loss.data(), rows},
                           .lse = {lse.data(), rows},
                           .vocab = kVocab,
                           .ignore_index = -1});
    std::vector<float>& to = in_place ? x : d;
    cross_entropy_bwd({}, {.dloss = {dloss.data(), rows},
                           .logits = {x.data(), all},
                           .targets = t,
                           .lse = {lse.data(), rows},
                           .weights = {},
                           .dlogits = {to.data(), all},
                           .vocab = kVocab,
                           .ignore_index = -1});
    set_thread_count(before);
    std::vector<float> result = to;
    result.insert(result.end(), loss.begin(), loss.end());
    return result;
  };
  const std::vector<float> expected = run(1, false);
  for (const std::vector<float>& got : {run(4, false), run(1, true), run(3, true)})
    EXPECT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)), 0);
}

TEST(CrossEntropy, RefusesBadTargetsAndShapes) {
  EXPECT_EQ(testing::error_of(ErrorKind::data,
                              [&] {
                                run_row({1.0f, 2.0f, 3.0f}, 2, 2);
                              }),
            "cross_entropy: target 2 at position 0, expected 0..1 or -1 (ignored)");
  EXPECT_EQ(testing::error_of(ErrorKind::data,
                              [&] {
                                run_row({1.0f, 2.0f, 3.0f}, -2, 2);
                              }),
            "cross_entropy: target -2 at position 0, expected 0..1 or -1 (ignored)");
  auto slots = std::make_shared<SlotTable>();
  slots->add({"logits", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"targets", {DType::i32, {3}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value logits = b.slot("logits"), targets = b.slot("targets");
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] { cross_entropy(b, logits, targets, {}, {.vocab = 4}); }),
            "cross_entropy: targets has shape (3), expected (2)");
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] { cross_entropy(b, logits, targets, {}, {.vocab = 5}); }),
            "cross_entropy: vocab is 5, expected 1..4 (the columns of the logits)");
}

TEST(CrossEntropy, RefusesAGradientThroughLse) {
  EXPECT_EQ(
      testing::error_of(
          ErrorKind::unsupported,
          [] {
            check_op(
                {.slots = {{"logits", {DType::f32, {2, 3}}},
                           {"targets", {DType::i32, {2}}, SlotRole::input, 1.0, 3}},
                 .build = [](Builder& b) {
                   return std::vector<Value>{
                       cross_entropy(b, b.slot("logits"), b.slot("targets"), {}, {.vocab = 3}).lse};
                 }});
          }),
      "cross_entropy: no gradient flows through lse");
}

}  // namespace
}  // namespace tightloop
