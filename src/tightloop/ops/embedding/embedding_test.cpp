#include "tightloop/ops/embedding/embedding.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;

testing::TestProgram lookup(const Shape& tokens, DType dtype, int64_t vocab, int64_t width) {
  return {.slots = {{"tokens", {DType::i32, tokens}, SlotRole::input, 1.0, vocab},
                    {"table", {dtype, {vocab, width}}}},
          .build = [](Builder& b) {
            return std::vector<Value>{embedding(b, b.slot("tokens"), b.slot("table"))};
          }};
}

TEST(Embedding, MatchesRefAndFiniteDifferences) {
  check_op(lookup({1}, DType::f32, 1, 1));
  check_op(lookup({7}, DType::f32, 5, 3));
  check_op(lookup({2, 9}, DType::f32, 50, 33));
  check_op(lookup({3, 200}, DType::f32, 300, 65));
  check_op(lookup({3, 300}, DType::f32, 2, 12));  // few tokens, each very often
}

TEST(Embedding, Bf16TableHasAnF32Gradient) {
  check_op(lookup({2, 9}, DType::bf16, 11, 37));
}

// A table that two lookups read: the first overwrites the gradient, the second adds to it.
TEST(Embedding, TwoLookupsAddTheirGradients) {
  check_op({.slots = {{"a", {DType::i32, {40}}, SlotRole::input, 1.0, 30},
                      {"b", {DType::i32, {25}}, SlotRole::input, 1.0, 30},
                      {"table", {DType::f32, {30, 16}}}},
            .build = [](Builder& b) {
              return std::vector<Value>{embedding(b, b.slot("a"), b.slot("table")),
                                        embedding(b, b.slot("b"), b.slot("table"))};
            }});
}

TEST(EmbeddingBwd, SameBitsForAnyThreadCountAndOverwritesEverything) {
  constexpr int64_t kTokens{3000}, kVocab{97}, kWidth{40};
  std::vector<int32_t> tokens(kTokens);
  std::vector<float> dy(kTokens * kWidth);
  Rng rng(3, 0);
  for (int32_t& t : tokens) t = static_cast<int32_t>(rng.below(kVocab / 2) * 2);  // odd rows unused
  for (float& v : dy) v = static_cast<float>(rng.normal());
  const auto run = [&](int threads) {
    const int before = thread_count();
    set_thread_count(threads);
    std::vector<float> dtable(kVocab * kWidth, 7.0f);
    std::vector<std::byte> scratch((kVocab + 1 + kTokens) * sizeof(int32_t));
    embedding_bwd({Device::cpu, scratch},
                  {.tokens = {tokens.data(), {DType::i32, {kTokens}}},
                   .dy = {dy.data(), {DType::f32, {kTokens, kWidth}}},
                   .dtable = {dtable.data(), {DType::f32, {kVocab, kWidth}}},
                   .accumulate = false});
    set_thread_count(before);
    return dtable;
  };
  const std::vector<float> one = run(1), five = run(5);
  EXPECT_EQ(std::memcmp(one.data(), five.data(), one.size() * sizeof(float)), 0);
  EXPECT_EQ(one[kWidth], 0.0f);
}

TEST(Embedding, RefusesATokenOutsideTheTable) {
  for (const int32_t bad : {-1, 5}) {
    const std::vector<int32_t> tokens{0, 4, bad};
    std::vector<float> table(5 * 2), y(3 * 2);
    EXPECT_EQ(testing::error_of(ErrorKind::data,
                                [&] {
                                  embedding_fwd({}, {.tokens = {tokens.data(), {DType::i32, {3}}},
                                                     .table = {table.data(), {DType::f32, {5, 2}}},
                                                     .y = {y.data(), {DType::f32, {3, 2}}}});
                                }),
              fmt::format("embedding: token {} at position 2, expected 0..4", bad));
  }
}

TEST(Embedding, RefusesFloatTokens) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"tokens", {DType::f32, {2}}, SlotRole::input});
  slots->add({"table", {DType::f32, {3, 4}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(
      testing::error_of(ErrorKind::dtype, [&] { embedding(b, b.slot("tokens"), b.slot("table")); }),
      "embedding: tokens is f32, expected i32");
}

}  // namespace
}  // namespace tightloop
