#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"

namespace tightloop {
namespace {

using testing::check_op;

struct Case {
  int64_t rows, cols, padded, vocab, chunk_rows;
  double cap;
  bool weighted;
  DType dtype = DType::f32;
};

std::string to_string(const Case& c) {
  return fmt::format("rows {} cols {} padded {} vocab {} chunk {} cap {} weighted {} {}", c.rows,
                     c.cols, c.padded, c.vocab, c.chunk_rows, c.cap, c.weighted, name_of(c.dtype));
}

const Case kCases[] = {
    {.rows = 1, .cols = 3, .padded = 5, .vocab = 5, .chunk_rows = 8, .cap = 0, .weighted = false},
    {.rows = 7, .cols = 17, .padded = 40, .vocab = 33, .chunk_rows = 3, .cap = 2, .weighted = true},
    {.rows = 37,
     .cols = 64,
     .padded = 256,
     .vocab = 251,
     .chunk_rows = 8,
     .cap = 15,
     .weighted = true},
    {.rows = 24,
     .cols = 33,
     .padded = 130,
     .vocab = 130,
     .chunk_rows = 24,
     .cap = 0,
     .weighted = true},
    {.rows = 20,
     .cols = 32,
     .padded = 96,
     .vocab = 90,
     .chunk_rows = 16,
     .cap = 15,
     .weighted = false,
     .dtype = DType::bf16},
};

std::vector<testing::TestSlot> slots_of(const Case& c) {
  std::vector<testing::TestSlot> slots{
      {"x", {DType::f32, {c.rows, c.cols}}},
      {"w", {c.dtype, {c.padded, c.cols}}, SlotRole::parameter, 0.5},
      // Target 0 is the ignored one.
      {"targets", {DType::i32, {c.rows}}, SlotRole::input, 1.0, c.vocab}};
  if (c.weighted) slots.push_back({"weights", {DType::f32, {c.rows}}, SlotRole::input});
  return slots;
}

LinearCrossEntropyValues build(Builder& b, const Case& c) {
  return linear_cross_entropy(
      b, b.slot("x"), b.slot("w"), b.slot("targets"), c.weighted ? b.slot("weights") : Value{},
      {.vocab = c.vocab, .ignore_index = 0, .cap = c.cap, .chunk_rows = c.chunk_rows});
}

TEST(LinearCrossEntropy, CpuMatchesRefAndFiniteDifferences) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(to_string(c));
    check_op({.slots = slots_of(c),
              .build = [&](Builder& b) { return std::vector<Value>{build(b, c).loss}; }},
             {.tolerance = 4e-6});
  }
}

// The same loss from linear, softcap and cross_entropy, whose logits do exist.
TEST(LinearCrossEntropy, AgreesWithTheUnfusedOperations) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(to_string(c));
    const testing::TestProgram fill{.slots = slots_of(c), .build = {}};
    const auto program = [&](bool fuse) {
      auto slots = std::make_shared<SlotTable>();
      for (const testing::TestSlot& s : fill.slots) slots->add({s.name, s.type, s.role});
      slots->add({"loss", {DType::f32, {c.rows}}, SlotRole::output});
      slots->add({"lse", {DType::f32, {c.rows}}, SlotRole::output});
      Program p("p", slots);
      Builder b(p, op_table());
      Value loss, lse;
      if (fuse) {
        const LinearCrossEntropyValues out = build(b, c);
        loss = out.loss, lse = out.lse;
      } else {
        Value logits = b.emit1("linear", {b.slot("x"), b.slot("w")});
        if (c.cap != 0.0) logits = b.emit1("softcap", {logits}, {{"cap", c.cap}});
        const std::vector<Value> out = b.emit(
            "cross_entropy", {logits, b.slot("targets"), c.weighted ? b.slot("weights") : Value{}},
            {{"vocab", c.vocab}, {"ignore_index", int64_t{0}}});
        loss = out[0], lse = out[1];
      }
      store(b, loss, b.slot("loss"), false);
      store(b, lse, b.slot("lse"), false);
      differentiate(p, op_table(), sum(b, mul(b, loss, loss)), {});
      return p;
    };
    const Program fused = program(true), plain = program(false);
    Interpreter one(fused, Device::cpu), two(plain, Device::cpu);
    fill_slots(one, fill, 3), fill_slots(two, fill, 3);
    one.run(), two.run();
    for (const char* name : {"loss", "lse", "grad.x", "grad.w"})
      EXPECT_LE(testing::scaled_error(one, one.slot(name), two, two.slot(name)), 1e-6) << name;
  }
}

/// Everything the gradient operation returns, in one vector.
std::vector<float> run_grad(int64_t chunk_rows, int threads, bool in_place, bool accumulate) {
  constexpr int64_t kRows{45}, kCols{40}, kPadded{512}, kVocab{500};
  std::vector<float> x(kRows * kCols), w(kPadded * kCols), dloss(kRows), weights(kRows);
  std::vector<int32_t> targets(kRows);
  Rng rng(21, 0);
  for (std::vector<float>* v : {&x, &w, &dloss, &weights})
    for (float& e : *v) e = static_cast<float>(rng.normal());
  for (int32_t& t : targets) t = static_cast<int32_t>(rng.below(kVocab + 1)) - 1;
  std::vector<float> loss(kRows), lse(kRows), dx(x.size()), dw(w.size(), 1.0f);
  const Type rows{DType::f32, {kRows}}, xt{DType::f32, {kRows, kCols}};
  const Type wt{DType::f32, {kPadded, kCols}};
  std::vector<float>& to = in_place ? x : dx;

  const int before = thread_count();
  set_thread_count(threads);
  const Attrs attrs{{"vocab", kVocab},
                    {"ignore_index", int64_t{-1}},
                    {"cap", 5.0},
                    {"chunk_rows", chunk_rows},
                    {"accumulate", accumulate}};
  const OpEntry& entry = op_entry("linear_cross_entropy_grad");
  const OpTypes types{.inputs = {xt, wt, Type{DType::i32, {kRows}}, rows, rows},
                      .updates = {wt},
                      .outputs = {rows, rows, xt}};
  // Exactly the bytes that were asked for, so that a sanitizer sees a write beyond them.
  std::vector<std::byte> scratch(static_cast<size_t>(entry.scratch(types, attrs)));
  const std::vector<ConstTensorView> inputs{{x.data(), xt},
                                            {w.data(), wt},
                                            {targets.data(), {DType::i32, {kRows}}},
                                            {dloss.data(), rows},
                                            {weights.data(), rows}};
  const std::vector<TensorView> outputs{{loss.data(), rows}, {lse.data(), rows}, {to.data(), xt}};
  const std::vector<TensorView> updates{{dw.data(), wt}};
  entry.run({Device::cpu, scratch}, {inputs, outputs, updates, attrs});
  set_thread_count(before);

  std::vector<float> all = loss;
  for (const std::vector<float>* v : {&lse, &to, &dw}) all.insert(all.end(), v->begin(), v->end());
  return all;
}

TEST(LinearCrossEntropyGrad, SameBitsForAnyThreadCountAndInPlace) {
  for (const int64_t chunk_rows : {8, 32, 1000}) {
    const std::vector<float> expected = run_grad(chunk_rows, 1, false, true);
    for (const std::vector<float>& got :
         {run_grad(chunk_rows, 4, false, true), run_grad(chunk_rows, 3, true, true)})
      EXPECT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)), 0)
          << chunk_rows;
  }
}

TEST(LinearCrossEntropyGrad, AccumulateAddsToWhatIsThere) {
  const std::vector<float> add = run_grad(16, 2, false, true);
  const std::vector<float> overwrite = run_grad(16, 2, false, false);
  const size_t dw = add.size() - 512 * 40;
  for (size_t i = 0; i < add.size(); ++i)
    ASSERT_NEAR(add[i], overwrite[i] + (i < dw ? 0.0f : 1.0f), 1e-5f) << i;
}

// The claim of the operation: one chunk of logits, whatever the rows.
TEST(LinearCrossEntropy, ScratchFollowsTheChunkNotTheRows) {
  const auto scratch = [](Device device, std::string_view op, int64_t rows, int64_t chunk_rows) {
    const Type x{DType::f32, {rows, 768}}, w{DType::f32, {32768, 768}}, r{DType::f32, {rows}};
    const OpTypes types{
        .inputs = {x, w, Type{DType::i32, {rows}}, r}, .updates = {w}, .outputs = {}};
    return op_entry(op).scratch_bytes(device, types, {{"cap", 0.0}, {"chunk_rows", chunk_rows}});
  };
  for (const std::string_view op : {"linear_cross_entropy", "linear_cross_entropy_grad"}) {
    const int64_t small = scratch(Device::cpu, op, 2048, 128);
    const int64_t large = scratch(Device::cpu, op, 2048, 512);
    EXPECT_EQ(scratch(Device::cpu, op, 4096, 128), small);
    EXPECT_GE(small, 128 * 32768 * 4);
    // Besides the logits there is only what the matrix products need.
    EXPECT_LT(large - 512 * 32768 * 4, 64 << 20);
    EXPECT_LT(small, large);
    EXPECT_EQ(scratch(Device::cuda, op, 2048, 128), 128 * 32768 * 4);
    EXPECT_EQ(scratch(Device::cuda, op, 4096, 128), 128 * 32768 * 4);
  }
}

TEST(LinearCrossEntropyCuda, ScratchOfBf16OperandsAndOfUnequalTypes) {
  constexpr auto kForward = LinearCrossEntropyPass::forward;
  constexpr auto kGradient = LinearCrossEntropyPass::gradient;
  const Type x{DType::bf16, {100, 12}}, w{DType::bf16, {50, 12}}, w32{DType::f32, {50, 12}};
  const auto bytes = [&](LinearCrossEntropyPass pass, const Type& weight, double cap = 0.0) {
    return LinearCrossEntropyCudaScratch(pass, x, weight, cap, 16).bytes();
  };
  EXPECT_EQ(bytes(kForward, w), 16 * 56 * 4);   // f32 logits in rows of 56
  EXPECT_EQ(bytes(kGradient, w), 16 * 56 * 2);  // bf16 logits
  EXPECT_EQ(bytes(kGradient, w32), 16 * 56 * 2 + 1280);
  // With a cap that replaces the maximum: a sum a row, and 16 factors and 16 rows of x, in whole
  // 256 bytes.
  EXPECT_EQ(bytes(kForward, w, 15.0), 16 * 56 * 4 + 16 * 4);
  EXPECT_EQ(bytes(kGradient, w32, 15.0), 16 * 56 * 2 + 256 + 512 + 1280 + 16 * 4);
  EXPECT_EQ(bytes(kGradient, w, 31.0), 16 * 56 * 2);
}

// What check_op cannot run, as the CPU has no bf16 activations.
TEST(LinearCrossEntropyCuda, Bf16MatchesRef) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  struct Sizes {
    int64_t cols, padded, vocab;
  };
  // The first two as Hopper's own products take them, one column of tiles and several; the last:
  // more packs than a thread has on their way, and rows of x that are no whole packs.
  const Sizes all_sizes[] = {{64, 264, 251}, {136, 1032, 1001}, {20, 8704, 8643}};
  for (const DType w_dtype : {DType::bf16, DType::f32}) {
    for (const auto& [cap, sizes] :
         {std::pair{0.0, 0}, {5.0, 0}, {15.0, 1}, {15.0, 2}, {40.0, 0}}) {
      const auto [cols, padded, vocab] = all_sizes[sizes];
      SCOPED_TRACE(fmt::format("w {} cap {} vocab {}", name_of(w_dtype), cap, vocab));
      const testing::TestProgram test{
          .slots = {{"x", {DType::bf16, {37, cols}}, SlotRole::input},
                    {"w", {w_dtype, {padded, cols}}, SlotRole::input, 0.25},
                    // Target 0 is the ignored one.
                    {"targets", {DType::i32, {37}}, SlotRole::input, 1.0, cap == 5.0 ? 9 : vocab},
                    {"dloss", {DType::f32, {37}}, SlotRole::input},
                    {"dw", {DType::f32, {padded, cols}}, SlotRole::gradient}},
          .build = {}};
      auto slots = std::make_shared<SlotTable>();
      for (const testing::TestSlot& s : test.slots) slots->add({s.name, s.type, s.role});
      Program program("p", slots);
      Builder b(program, op_table());
      Attrs attrs{{"vocab", vocab},
                  {"ignore_index", int64_t{0}},
                  {"cap", cap},
                  {"chunk_rows", int64_t{16}}};
      const std::vector<Value> inputs{b.slot("x"), b.slot("w"), b.slot("targets")};
      const auto with = [&](std::vector<Value> more) {
        more.insert(more.begin(), inputs.begin(), inputs.end());
        return more;
      };
      const std::vector<Value> forward = b.emit("linear_cross_entropy", with({Value{}}), attrs);
      attrs.set("accumulate", true);
      const std::vector<Value> gradient = b.emit(
          "linear_cross_entropy_grad", with({b.slot("dloss"), Value{}}), attrs, {b.slot("dw")});

      Interpreter run(program, Device::cuda), ref(program, Device::ref);
      fill_slots(run, test, 5), fill_slots(ref, test, 5);
      run.run(), ref.run();
      const auto error = [&](Value v) {
        return testing::scaled_error(run, run.view(v), ref, ref.view(v));
      };
      // f32 logits; only w may have been rounded to bf16.
      const double rounded = w_dtype == DType::f32 ? 4e-3 : 1e-5;
      EXPECT_LE(error(forward[0]), rounded);
      EXPECT_LE(error(forward[1]), rounded);
      for (const Value v : gradient) EXPECT_LE(error(v), 2e-2);
      EXPECT_LE(testing::scaled_error(run, run.slot("dw"), ref, ref.slot("dw")), 2e-2);
    }
  }
}

// Row n of x meets its target's weights in column n of dx alone, so that what is there has only the
// rounding of dx itself: the target's entry of the gradient loses nothing in bf16.
TEST(LinearCrossEntropyCuda, TheTargetsEntryIsExactInBf16) {
  if (cuda::device_count() == 0 || cuda::device_info().compute_major != 9)
    GTEST_SKIP() << "no Hopper GPU: elsewhere logits and dx are rounded before";
  constexpr int64_t kRows = 32, kCols = 64;
  const testing::TestProgram test{
      .slots = {{"x", {DType::bf16, {kRows, kCols}}, SlotRole::input},
                {"w", {DType::bf16, {96, kCols}}, SlotRole::input, 0.25},
                {"targets", {DType::i32, {kRows}}, SlotRole::input, 1.0, 96},
                {"dloss", {DType::f32, {kRows}}, SlotRole::input},
                {"dw", {DType::f32, {96, kCols}}, SlotRole::gradient}},
      .build = {}};
  auto slots = std::make_shared<SlotTable>();
  for (const testing::TestSlot& s : test.slots) slots->add({s.name, s.type, s.role});
  Program program("p", slots);
  Builder b(program, op_table());
  const std::vector<Value> outputs =
      b.emit("linear_cross_entropy_grad",
             {b.slot("x"), b.slot("w"), b.slot("targets"), b.slot("dloss"), Value{}},
             Attrs{{"vocab", int64_t{90}},
                   {"ignore_index", int64_t{-1}},
                   {"cap", 15.0},
                   {"chunk_rows", int64_t{16}},
                   {"accumulate", false}},
             {b.slot("dw")});
  const Value dx = outputs.back();
  Interpreter run(program, Device::cuda), ref(program, Device::ref);
  for (const Interpreter* one : {&run, &ref}) {
    fill_slots(*one, test, 5);
    for (int64_t n = 0; n < kRows; ++n) {
      one->set(one->slot("targets"), n, static_cast<double>(n));
      for (int64_t v = 0; v < 96; ++v) {
        if (v != n) one->set(one->slot("w"), v * kCols + n, 0.0);
      }
    }
  }
  run.run(), ref.run();
  for (int64_t n = 0; n < kRows; ++n) {
    const double got = run.get(run.view(dx), n * kCols + n),
                 want = ref.get(ref.view(dx), n * kCols + n);
    ASSERT_NE(want, 0.0);
    EXPECT_LE(std::abs(got - want), 0x1.02p-8 * std::abs(want)) << n;
  }
}

TEST(LinearCrossEntropyChunkRows, FillsTheBudgetEvenly) {
  EXPECT_EQ(linear_cross_entropy_chunk_rows(1024, 32768, 4, 64 << 20), 512);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(1024, 32768, 4, 1 << 30), 1024);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(65536, 32768, 2, 1 << 30), 16384);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(1000, 32768, 4, 60 << 20),
            336);  // 3 chunks, not 2 of 480
  EXPECT_EQ(linear_cross_entropy_chunk_rows(1024, 32768, 4, 1), 8);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(5, 32768, 4, 1), 5);
  for (const int64_t rows : {9, 100, 1000, 2048, 4097}) {
    for (const int64_t budget : {int64_t{1} << 20, int64_t{5} << 20, int64_t{100} << 20}) {
      const int64_t chunk = linear_cross_entropy_chunk_rows(rows, 5000, 4, budget);
      EXPECT_TRUE(chunk % 8 == 0 || chunk == rows) << chunk;
      EXPECT_LE(chunk * 5000 * 4, std::max(budget, int64_t{8} * 5000 * 4));
    }
  }
}

TEST(LinearCrossEntropyChunkRows, WastesFewTurnsOfTiles) {
  const auto rows_of = [](int64_t rows, int64_t vocab, int64_t width) {
    return linear_cross_entropy_chunk_rows(rows, vocab, 2, 1 << 30, {width, 66});
  };
  EXPECT_EQ(rows_of(65536, 32768, 768), 16384);  // 192 tiles: 3 turns of 66
  EXPECT_EQ(rows_of(32768, 32768, 1280), 16384);
  EXPECT_EQ(rows_of(32768, 50304, 768), 5632);  // 66 tiles a chunk; 8192 rows would take 2 turns
  EXPECT_EQ(rows_of(2048, 50304, 768), 2048);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(2048, 50304, 2, 1 << 20, {768, 66}), 8);
  EXPECT_EQ(linear_cross_entropy_chunk_rows(1000, 1000, 2, 600 * 2000, {768, 66}), 512);
}

TEST(LinearCrossEntropy, RefusesOperandsThatDoNotFit) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"x", {DType::f32, {2, 4}}, SlotRole::parameter});
  slots->add({"w", {DType::f32, {6, 3}}, SlotRole::parameter});
  slots->add({"v", {DType::f32, {6, 4}}, SlotRole::parameter});
  slots->add({"targets", {DType::i32, {2}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value x = b.slot("x"), w = b.slot("w"), v = b.slot("v"), t = b.slot("targets");
  EXPECT_EQ(testing::error_of(
                ErrorKind::shape,
                [&] { linear_cross_entropy(b, x, w, t, {}, {.vocab = 6, .chunk_rows = 8}); }),
            "linear_cross_entropy: x has shape (2, 4), expected (..., 3) as w has shape (6, 3)");
  EXPECT_EQ(testing::error_of(
                ErrorKind::shape,
                [&] { linear_cross_entropy(b, x, v, t, {}, {.vocab = 7, .chunk_rows = 8}); }),
            "linear_cross_entropy: vocab is 7, expected 1..6 (the columns of the logits)");
  EXPECT_EQ(testing::error_of(
                ErrorKind::usage,
                [&] { linear_cross_entropy(b, x, v, t, {}, {.vocab = 6, .chunk_rows = 0}); }),
            "linear_cross_entropy: chunk_rows is 0, expected 1 or more");

  linear_cross_entropy(b, x, v, t, {}, {.vocab = 5, .chunk_rows = 8});
  Interpreter run(program, Device::cpu);
  run.set(run.slot("targets"), 0, 0.0);
  run.set(run.slot("targets"), 1, 5.0);
  EXPECT_EQ(testing::error_of(ErrorKind::data, [&] { run.run(); }),
            "linear_cross_entropy: target 5 at position 1, expected 0..4 or -1 (ignored)");
}

}  // namespace
}  // namespace tightloop
