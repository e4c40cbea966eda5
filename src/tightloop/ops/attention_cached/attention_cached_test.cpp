#include "tightloop/ops/attention_cached/attention_cached.h"

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

struct Case {
  int64_t batch, tokens, heads, kv_heads, dim, size, window;
  DType dtype = DType::f32;
};

/// A Program with one call, run step by step over the same caches.
struct Session {
  std::shared_ptr<SlotTable> slots = std::make_shared<SlotTable>();
  Program program{"p", slots};
  Value o;
  std::unique_ptr<Interpreter> run;
  Case c;

  Session(const Case& used, Device device) : c(used) {
    const Shape cache{c.batch, c.kv_heads, c.size, c.dim};
    slots->add({"q", {DType::f32, {c.batch, c.tokens, c.heads, c.dim}}, SlotRole::input});
    slots->add({"k", {DType::f32, {c.batch, c.tokens, c.kv_heads, c.dim}}, SlotRole::input});
    slots->add({"v", {DType::f32, {c.batch, c.tokens, c.kv_heads, c.dim}}, SlotRole::input});
    slots->add({"pos", {DType::i32, {}}, SlotRole::scalar});
    slots->add({"k_cache", {c.dtype, cache}, SlotRole::cache});
    slots->add({"v_cache", {c.dtype, cache}, SlotRole::cache});
    Builder b(program, op_table());
    o = attention_cached(b, b.slot("q"), b.slot("k"), b.slot("v"), b.slot("pos"), b.slot("k_cache"),
                         b.slot("v_cache"), c.window, 1.0 / std::sqrt(static_cast<double>(c.dim)));
    run = std::make_unique<Interpreter>(program, device);
  }

  /// Tokens pos..pos+tokens-1 of three streams that depend on the position alone. Keys and values
  /// are representable in bf16, so that the reference, which stores float64, sees the same.
  void step(int64_t pos) {
    run->set(run->slot("pos"), 0, static_cast<double>(pos));
    uint64_t stream = 0;
    for (const char* name : {"q", "k", "v"}) {
      const TensorView t = run->slot(name);
      const int64_t row = t.shape()[2] * t.shape()[3];
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t i = 0; i < c.tokens; ++i) {
          Rng rng(7 + stream, static_cast<uint64_t>(b * 100000 + pos + i));
          for (int64_t d = 0; d < row; ++d)
            run->set(t, (b * c.tokens + i) * row + d,
                     static_cast<double>(to_float(to_bf16(static_cast<float>(rng.normal())))));
        }
      }
      ++stream;
    }
    run->run();
  }
  double at(int64_t i) const { return run->get(run->view(o), i); }
  int64_t elems() const { return run->view(o).elems(); }
};

TEST(AttentionCached, CpuMatchesRefStepByStep) {
  for (const Case& c :
       {Case{1, 1, 1, 1, 8, 6, 100}, Case{2, 1, 4, 2, 32, 20, 100}, Case{2, 3, 4, 1, 20, 31, 100},
        Case{1, 2, 2, 2, 16, 20, 0}, Case{1, 2, 2, 2, 16, 20, 1}, Case{1, 5, 2, 1, 64, 33, 7},
        Case{2, 3, 4, 2, 128, 20, 100, DType::bf16}, Case{2, 9, 4, 2, 20, 40, 100},
        Case{1, 20, 2, 2, 64, 130, 33}, Case{1, 8, 2, 1, 32, 300, 0},
        Case{2, 100, 2, 1, 32, 250, 100, DType::bf16}}) {
    Session cpu(c, Device::cpu), ref(c, Device::ref);
    for (int64_t pos = 0; pos + c.tokens <= c.size; pos += c.tokens) {
      cpu.step(pos), ref.step(pos);
      EXPECT_LE(
          testing::scaled_error(*cpu.run, cpu.run->view(cpu.o), *ref.run, ref.run->view(ref.o)),
          2e-6)
          << "position " << pos << " window " << c.window;
    }
    for (const char* name : {"k_cache", "v_cache"}) {
      EXPECT_EQ(testing::scaled_error(*cpu.run, cpu.run->slot(name), *ref.run, ref.run->slot(name)),
                0.0);
    }
  }
}

TEST(AttentionCached, LongCachesOfManyChunks) {
  for (const int64_t window : {10000, 300, 256, 255}) {
    for (const int64_t tokens : {7, 50}) {
      const Case c{1, tokens, 2, 1, 32, 700, window};
      Session cpu(c, Device::cpu), ref(c, Device::ref);
      for (int64_t pos = 0; pos + c.tokens <= c.size; pos += c.tokens) {
        cpu.step(pos), ref.step(pos);
        EXPECT_LE(
            testing::scaled_error(*cpu.run, cpu.run->view(cpu.o), *ref.run, ref.run->view(ref.o)),
            2e-6)
            << "position " << pos << " window " << window;
      }
    }
  }
}

TEST(AttentionCached, EqualsAttentionOverTheWholeSequence) {
  const int64_t tokens = 37;
  for (const int64_t window : {5, 1000}) {
    Session one(Case{2, 1, 4, 2, 16, tokens, window}, Device::ref);
    Session all(Case{2, tokens, 4, 2, 16, tokens, window}, Device::ref);
    all.step(0);
    Program program("whole", all.slots);
    Builder b(program, op_table());
    const Value o = attention(b, b.slot("q"), b.slot("k"), b.slot("v"), window, 0.25)[0];
    Interpreter whole(program, Device::ref);
    for (const char* name : {"q", "k", "v"}) {
      for (int64_t i = 0; i < whole.slot(name).elems(); ++i)
        whole.set(whole.slot(name), i, all.run->get(all.run->slot(name), i));
    }
    whole.run();
    EXPECT_LE(testing::scaled_error(*all.run, all.run->view(all.o), whole, whole.view(o)), 1e-13);
    const int64_t row = 4 * 16;
    for (int64_t pos = 0; pos < tokens; ++pos) {
      one.step(pos);
      for (int64_t i = 0; i < row; ++i) {
        EXPECT_NEAR(one.at(i), all.at(pos * row + i), 1e-13);
        EXPECT_NEAR(one.at(row + i), all.at((tokens + pos) * row + i), 1e-13);
      }
    }
  }
}

TEST(AttentionCached, SameBitsForAnyThreadCount) {
  const int before = thread_count();
  std::vector<double> expected;
  for (const int threads : {1, 2, 3}) {
    set_thread_count(threads);
    Session cpu(Case{1, 30, 2, 1, 32, 600, 400}, Device::cpu);
    std::vector<double> got;
    for (int64_t pos = 0; pos + 30 <= 600; pos += 30) {
      cpu.step(pos);
      for (int64_t i = 0; i < cpu.elems(); ++i) got.push_back(cpu.at(i));
    }
    if (threads == 1) expected = got;
    EXPECT_TRUE(got == expected) << threads;
  }
  set_thread_count(before);
}

TEST(AttentionCached, RefusesPositionsBeyondTheCacheAndOtherCaches) {
  Session s(Case{1, 2, 2, 1, 8, 6, 100}, Device::cpu);
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { s.step(5); }),
            "attention_cached: positions 5 to 6 are not in a cache of 6");
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { s.step(-1); }),
            "attention_cached: positions -1 to 0 are not in a cache of 6");
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] {
                                Session short_cache(Case{1, 8, 2, 1, 8, 6, 100}, Device::cpu);
                              }),
            "attention_cached: the cache holds 6 positions, q has 8 tokens");
  EXPECT_EQ(testing::error_of(ErrorKind::dtype,
                              [&] {
                                Session other(Case{1, 2, 2, 1, 8, 6, 100, DType::u16}, Device::cpu);
                              }),
            "attention_cached: k_cache is u16, expected f32 or bf16");
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] {
                                Session heads(Case{1, 2, 3, 2, 8, 6, 100}, Device::cpu);
                              }),
            "attention_cached: 2 key/value heads, expected a divisor of 3 query heads");
}

}  // namespace
}  // namespace tightloop
