#include "tightloop/ops/embedding/embedding.h"

#include <algorithm>
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

// Lookups of the same tokens into tables of one height go by one order.
TEST(TokenOrder, IsSortedKeepsEqualTokensInOrderAndIsShared) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"tokens", {DType::i32, {5, 1000}}, SlotRole::input});
  slots->add({"a", {DType::f32, {700, 4}}, SlotRole::parameter});
  slots->add({"b", {DType::f32, {700, 4}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value tokens = b.slot("tokens");
  const Value y = add(b, embedding(b, tokens, b.slot("a")), embedding(b, tokens, b.slot("b")));
  differentiate(program, op_table(), sum(b, y), {});
  program.validate();
  Value order;
  for (const Op& op : program.ops()) {
    if (op.def->name != "token_order") continue;
    EXPECT_FALSE(order);
    order = op.outputs[0];
  }
  ASSERT_TRUE(order);
  for (const Device device : testing::all_devices()) {
    SCOPED_TRACE(name_of(device));
    Interpreter run(program, device);
    int32_t* token = run.slot("tokens").as<int32_t>();
    Rng rng(5, 0);
    for (int64_t n = 0; n < 5000; ++n) token[n] = static_cast<int32_t>(rng.below(700));
    run.run();
    const int32_t* position = run.view(order).as<int32_t>();
    std::vector<int32_t> expected(5000);
    for (int32_t n = 0; n < 5000; ++n) expected[static_cast<size_t>(n)] = n;
    std::stable_sort(expected.begin(), expected.end(),
                     [token](int32_t i, int32_t j) { return token[i] < token[j]; });
    EXPECT_EQ(std::vector<int32_t>(position, position + 5000), expected);
  }
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
    std::vector<int32_t> order(kTokens);
    std::vector<std::byte> scratch((kVocab + 1) * sizeof(int32_t));
    token_order({Device::cpu, scratch}, {.tokens = {tokens.data(), {DType::i32, {kTokens}}},
                                         .order = {order.data(), {DType::i32, {kTokens}}},
                                         .vocab = kVocab});
    embedding_bwd({Device::cpu, scratch},
                  {.tokens = {tokens.data(), {DType::i32, {kTokens}}},
                   .dy = {dy.data(), {DType::f32, {kTokens, kWidth}}},
                   .order = {order.data(), {DType::i32, {kTokens}}},
                   .dtable = {dtable.data(), {DType::f32, {kVocab, kWidth}}},
                   .accumulate = false});
    set_thread_count(before);
    return dtable;
  };
  const std::vector<float> one = run(1), five = run(5);
  EXPECT_EQ(std::memcmp(one.data(), five.data(), one.size() * sizeof(float)), 0);
  EXPECT_EQ(one[kWidth], 0.0f);
}

struct Lookup {
  DType dtype;
  int64_t tokens, vocab, width;
};

/// Fills a Program of a lookup and its backward, runs it, and returns y and dtable.
std::vector<double> on_device(Device device, const Lookup& sizes) {
  const auto [dtype, tokens, vocab, width] = sizes;
  auto slots = std::make_shared<SlotTable>();
  slots->add({"tokens", {DType::i32, {tokens}}, SlotRole::input});
  slots->add({"table", {dtype, {vocab, width}}, SlotRole::parameter});
  slots->add({"dy", {dtype, {tokens, width}}, SlotRole::input});
  slots->add({"dtable", {DType::f32, {vocab, width}}, SlotRole::gradient});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value y = embedding(b, b.slot("tokens"), b.slot("table"), dtype);
  const Value order = token_order(b, b.slot("tokens"), vocab);
  for (const bool accumulate : {false, true})
    b.emit("embedding_bwd", {b.slot("tokens"), b.slot("dy"), order}, {{"accumulate", accumulate}},
           {b.slot("dtable")});
  program.validate();
  Interpreter run(program, device);
  Rng rng(8, 0);
  for (int64_t n = 0; n < tokens; ++n) {  // a third of them are one token
    const auto token =
        static_cast<int32_t>(n % 3 == 0 ? 7 : rng.below(static_cast<uint64_t>(vocab)));
    run.slot("tokens").as<int32_t>()[n] = token;
  }
  for (const char* name : {"table", "dy", "dtable"}) {
    const TensorView t = run.slot(name);
    for (int64_t i = 0; i < t.elems(); ++i)
      run.set(t, i, static_cast<double>(to_float(to_bf16(static_cast<float>(rng.normal())))));
  }
  run.run();
  std::vector<double> values;
  for (const TensorView& t : {run.view(y), run.slot("dtable")})
    for (int64_t i = 0; i < t.elems(); ++i) values.push_back(run.get(t, i));
  return values;
}

TEST(Embedding, CudaMatchesRefInBothTypesAndRepeatsItsBits) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  // The last: three digits to sort by, and many chunks.
  for (const Lookup& sizes : {Lookup{DType::f32, 1300, 300, 20}, Lookup{DType::bf16, 1300, 300, 20},
                              Lookup{DType::f32, 40000, 70000, 4}}) {
    SCOPED_TRACE(fmt::format("{} {}", name_of(sizes.dtype), sizes.tokens));
    const std::vector<double> ref = on_device(Device::ref, sizes);
    const std::vector<double> cuda = on_device(Device::cuda, sizes);
    for (size_t i = 0; i < ref.size(); ++i)
      ASSERT_NEAR(cuda[i], ref[i], 1e-4 * (1 + std::abs(ref[i]))) << i;
    EXPECT_EQ(cuda, on_device(Device::cuda, sizes));
  }
}

// Nothing may wait to look at tokens there: a wrong one shows in y and touches no other memory.
TEST(Embedding, ATokenOutsideTheTableIsNanOnCuda) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  auto slots = std::make_shared<SlotTable>();
  slots->add({"tokens", {DType::i32, {4}}, SlotRole::input});
  slots->add({"table", {DType::f32, {5, 3}}, SlotRole::parameter});
  slots->add({"dtable", {DType::f32, {5, 3}}, SlotRole::gradient});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value y = embedding(b, b.slot("tokens"), b.slot("table"));
  const Value order = token_order(b, b.slot("tokens"), 5);
  b.emit("embedding_bwd", {b.slot("tokens"), y, order}, {{"accumulate", false}},
         {b.slot("dtable")});
  program.validate();
  Interpreter run(program, Device::cuda);
  const int32_t tokens[] = {4, -1, 5, 0};
  std::copy(tokens, tokens + 4, run.slot("tokens").as<int32_t>());
  for (int64_t i = 0; i < 15; ++i) run.set(run.slot("table"), i, 1.0);
  run.run();
  for (int64_t i = 0; i < 12; ++i)
    EXPECT_EQ(std::isnan(run.get(run.view(y), i)), i / 3 == 1 || i / 3 == 2) << i;
  for (int64_t i = 0; i < 15; ++i)
    EXPECT_EQ(run.get(run.slot("dtable"), i), i / 3 == 0 || i / 3 == 4 ? 1.0 : 0.0) << i;
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
