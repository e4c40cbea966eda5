#include "tightloop/ops/attention/attention.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/attention/attention_cudnn.h"
#include "tightloop/ops/attention/attention_kernels.h"
#include "tightloop/ops/attention/attention_sm90.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

using testing::check_op;
using testing::TestProgram;

struct Case {
  int64_t batch, tokens, heads, kv_heads, dim, window;
};

std::string name_of_case(const Case& c) {
  return fmt::format("B {} T {} H {} Hkv {} D {} window {}", c.batch, c.tokens, c.heads, c.kv_heads,
                     c.dim, c.window);
}

std::vector<Value> build_attention(Builder& b, const Case& c) {
  return attention(b, b.slot("q"), b.slot("k"), b.slot("v"), c.window,
                   1.0 / std::sqrt(static_cast<double>(c.dim)));
}

TestProgram test_program(const Case& c) {
  const Shape q{c.batch, c.tokens, c.heads, c.dim}, k{c.batch, c.tokens, c.kv_heads, c.dim};
  return {.slots = {{"q", {DType::f32, q}}, {"k", {DType::f32, k}}, {"v", {DType::f32, k}}},
          .build = [c](Builder& b) { return std::vector<Value>{build_attention(b, c)[0]}; }};
}

void check(const Case& c, int probes = 6) {
  SCOPED_TRACE(name_of_case(c));
  // f32 sums over D and over the keys. The gradients, with four times this, lose the most where few
  // keys make do·v and delta nearly equal.
  check_op(test_program(c), {.tolerance = c.tokens <= 2 ? 2e-5 : 6e-6, .fd_probes = probes});
}

TEST(Attention, CpuMatchesRefAndFiniteDifferences) {
  for (const int64_t dim : {1, 8, 20, 32, 64, 128}) {
    for (const int64_t tokens : {1, 2, 17, 50, 100}) check({1, tokens, 2, 1, dim, 1 << 20}, 2);
  }
}

TEST(Attention, WindowsAtTheirEdges) {
  for (const int64_t tokens : {1, 7, 40, 97, 130}) {
    for (const int64_t window : {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{31}, tokens - 2,
                                 tokens - 1, tokens, tokens + 1}) {
      if (window >= 0) check({1, tokens, 2, 2, 16, window}, 2);
    }
  }
}

TEST(Attention, GroupsOfQueryHeadsShareKeys) {
  for (const int64_t kv_heads : {1, 2, 4}) {
    check({2, 33, 4, kv_heads, 24, 9});
    check({2, 33, 4, kv_heads, 32, 1 << 20});
  }
}

TEST(Attention, ManyBlocks) {
  // Compared with ref only: finite differences on these sizes take minutes.
  for (const Case& c : {Case{1, 300, 2, 1, 64, 100}, Case{1, 259, 1, 1, 128, 1 << 20},
                        Case{3, 200, 3, 3, 32, 128}}) {
    check(c, 0);
  }
}

TEST(Attention, LseIsTheLogOfTheSum) {
  for (const int64_t window : {3, 1000}) {
    const Case c{2, 70, 4, 2, 32, window};
    TestProgram test = test_program(c);
    test.build = [c](Builder& b) { return build_attention(b, c); };
    check_op(test, {.tolerance = 2e-6, .gradients = false});
  }
}

TEST(Attention, LargeScoresStayFinite) {
  TestProgram test = test_program({1, 150, 1, 1, 32, 1 << 20});
  test.slots[0].stddev = 30.0;
  test.slots[1].stddev = 3.0;
  // Scores around 90 are rounded to 1e-5: that is the relative error of e^score.
  check_op(test, {.tolerance = 1e-4, .fd_probes = 0});
}

/// A tensor in f32 and the same values in float64.
struct Twin {
  std::vector<float> f32;
  std::vector<double> f64;
  Shape shape;
  Twin(const Shape& s, uint64_t stream)
      : f32(static_cast<size_t>(s.elems())), f64(f32.size()), shape(s) {
    fill_normal(f32.data(), s.elems(), 11, stream, 0.0f, 1.0f);
    std::copy(f32.begin(), f32.end(), f64.begin());
  }
  TensorView cpu() { return {f32.data(), {DType::f32, shape}}; }
  TensorView ref() { return {f64.data(), {DType::f64, shape}}; }
  double error() const {
    double worst = 0.0, scale = 0.0;
    for (size_t i = 0; i < f32.size(); ++i) {
      if (std::isnan(f32[i])) return HUGE_VAL;
      worst = std::max(worst, std::abs(static_cast<double>(f32[i]) - f64[i]));
      scale = std::max(scale, std::abs(f64[i]));
    }
    return worst / scale;
  }
};

TEST(Attention, EveryInstructionSetMatchesRef) {
  for (const Case& c : {Case{1, 1, 1, 1, 4, 9}, Case{2, 100, 2, 1, 20, 33},
                        Case{1, 250, 2, 2, 64, 100}, Case{1, 200, 1, 1, 128, 1 << 20}}) {
    for (const AttentionTiles* tiles :
         {attention_detail::avx512_kernels(), attention_detail::avx2_kernels(),
          attention_detail::portable_kernels()}) {
      if (tiles == nullptr) continue;
      SCOPED_TRACE(name_of_case(c) + " " + tiles->name);
      const Shape qs{c.batch, c.tokens, c.heads, c.dim}, ks{c.batch, c.tokens, c.kv_heads, c.dim};
      const Shape ls{c.batch, c.heads, c.tokens};
      Twin q(qs, 1), k(ks, 2), v(ks, 3), grad_o(qs, 4), o(qs, 5), lse(ls, 6);
      Twin dq(qs, 7), dk(ks, 8), dv(ks, 9);
      // Scratch holds what earlier operations left: here the worst of it.
      std::vector<float> scratch(
          static_cast<size_t>(std::max(attention_fwd_scratch_bytes(qs, ks, *tiles),
                                       attention_bwd_scratch_bytes(qs, ks, *tiles))) /
              sizeof(float),
          std::nanf(""));
      const std::span<std::byte> bytes = std::as_writable_bytes(std::span(scratch));
      const double scale = 0.2;
      attention_fwd_ref({q.ref(), k.ref(), v.ref(), o.ref(), lse.ref(), c.window, scale});
      attention_fwd_cpu({q.cpu(), k.cpu(), v.cpu(), o.cpu(), lse.cpu(), c.window, scale}, *tiles,
                        bytes);
      EXPECT_LE(o.error(), 4e-6);
      EXPECT_LE(lse.error(), 4e-6);
      std::fill(scratch.begin(), scratch.end(), std::nanf(""));
      attention_bwd_ref({grad_o.ref(), q.ref(), k.ref(), v.ref(), o.ref(), lse.ref(), dq.ref(),
                         dk.ref(), dv.ref(), c.window, scale});
      attention_bwd_cpu({grad_o.cpu(), q.cpu(), k.cpu(), v.cpu(), o.cpu(), lse.cpu(), dq.cpu(),
                         dk.cpu(), dv.cpu(), c.window, scale},
                        *tiles, bytes);
      if (c.tokens > 1) {  // one token: both are exactly 0 in the reference
        EXPECT_LE(dq.error(), 2e-5);
        EXPECT_LE(dk.error(), 2e-5);
      }
      EXPECT_LE(dv.error(), 2e-5);
    }
  }
}

/// Bytes of every output and gradient of one run.
std::vector<std::byte> bits_of_run(const Case& c, int threads) {
  const int before = thread_count();
  set_thread_count(threads);
  auto slots = std::make_shared<SlotTable>();
  const TestProgram test = test_program(c);
  for (const auto& s : test.slots) slots->add({s.name, s.type, s.role});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value o = build_attention(b, c)[0];
  differentiate(program, op_table(), sum(b, mul(b, o, o)), {});
  Interpreter run(program, Device::cpu);
  testing::fill_slots(run, test, 5);
  run.run();
  std::vector<std::byte> bits;
  const auto append = [&](const TensorView& t) {
    const auto* p = static_cast<const std::byte*>(t.data);
    bits.insert(bits.end(), p, p + t.bytes());
  };
  append(run.view(o));
  for (const char* name : {"grad.q", "grad.k", "grad.v"}) append(run.slot(name));
  set_thread_count(before);
  return bits;
}

TEST(Attention, SameBitsForAnyThreadCount) {
  for (const Case& c : {Case{1, 333, 2, 1, 32, 1 << 20}, Case{1, 333, 2, 2, 64, 100},
                        Case{5, 100, 4, 2, 32, 30}, Case{1, 250, 1, 1, 16, 250}}) {
    SCOPED_TRACE(name_of_case(c));
    const auto one = bits_of_run(c, 1);
    for (const int threads : {1, 2, 3, 7}) EXPECT_TRUE(bits_of_run(c, threads) == one) << threads;
  }
}

double scale_of_heads(int64_t dim) {
  return 1.0 / std::sqrt(static_cast<double>(dim));
}

std::string_view kernel_of(const Case& c, DType dtype, bool backward) {
  return attention_kernel_name({dtype, {c.batch, c.tokens, c.heads, c.dim}},
                               {dtype, {c.batch, c.tokens, c.kv_heads, c.dim}}, c.window,
                               scale_of_heads(c.dim), backward);
}

/// Forward and backward in bf16, twice, against the reference.
void check_bf16_on_cuda(const Case& c) {
  SCOPED_TRACE(name_of_case(c));
  const Shape q{c.batch, c.tokens, c.heads, c.dim}, k{c.batch, c.tokens, c.kv_heads, c.dim};
  const TestProgram test{.slots = {{"q", {DType::bf16, q}},
                                   {"k", {DType::bf16, k}},
                                   {"v", {DType::bf16, k}},
                                   {"grad_o", {DType::bf16, q}}}};
  auto slots = std::make_shared<SlotTable>();
  for (const auto& s : test.slots) slots->add({s.name, s.type, s.role});
  Program program("p", slots);
  Builder b(program, op_table());
  std::vector<Value> results = build_attention(b, c);
  const std::vector<Value> grads =
      b.emit("attention_bwd",
             {b.slot("grad_o"), b.slot("q"), b.slot("k"), b.slot("v"), results[0], results[1]},
             {{"window", c.window}, {"softmax_scale", scale_of_heads(c.dim)}});
  results.insert(results.end(), grads.begin(), grads.end());
  Interpreter ref(program, Device::ref), one(program, Device::cuda), two(program, Device::cuda);
  for (const Interpreter* run : {&ref, &one, &two}) testing::fill_slots(*run, test, 3);
  ref.run(), one.run(), two.run();
  for (size_t i = 0; i < results.size(); ++i) {
    const TensorView x = one.view(results[i]);
    // Who sees one key has no gradient by its score: dq and dk are what rounding leaves of nothing.
    if (c.window > 0 || (i != 2 && i != 3)) {
      EXPECT_LE(testing::scaled_error(one, x, ref, ref.view(results[i])), 0.02) << i;
    }
    EXPECT_EQ(std::memcmp(x.data, two.view(results[i]).data, static_cast<size_t>(x.bytes())), 0)
        << i;
  }
}

// The CPU has no bf16 activations, so check_op cannot run this.
TEST(Attention, Bf16OnCudaIsCloseToRefAndRepeatsItsBits) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const bool cudnn = set_cudnn_attention(false), sm90 = set_sm90_attention(false);
  for (const Case& c :
       {Case{2, 100, 2, 1, 37, 33}, Case{1, 130, 4, 2, 64, 31}, Case{1, 300, 2, 1, 128, 1 << 20},
        Case{1, 90, 1, 1, 256, 40}, Case{1, 128, 2, 1, 64, 0}}) {
    EXPECT_EQ(kernel_of(c, DType::bf16, false), "own");
    check_bf16_on_cuda(c);
  }
  set_cudnn_attention(cudnn);
  set_sm90_attention(sm90);
}

TEST(Attention, HopperBackwardIsCloseToRefAndRepeatsItsBits) {
  if (kernel_of({1, 256, 1, 1, 128, 256}, DType::bf16, true) != "own, Hopper")
    GTEST_SKIP() << "no Hopper device";
  for (const Case& c :
       {Case{2, 256, 2, 2, 128, 1 << 20}, Case{1, 128, 1, 1, 128, 1 << 20},
        Case{3, 520, 3, 3, 128, 1 << 20}, Case{2, 1000, 4, 2, 128, 300},
        Case{1, 384, 4, 1, 128, 100}, Case{1, 256, 2, 2, 128, 0}, Case{1, 256, 2, 1, 128, 1},
        Case{1, 320, 2, 2, 128, 63}, Case{1, 320, 2, 2, 128, 64}, Case{1, 256, 2, 2, 128, 127},
        Case{1, 256, 2, 2, 128, 128}, Case{1, 300, 2, 2, 128, 254}, Case{1, 1, 2, 1, 128, 9},
        Case{2, 2, 1, 1, 128, 9}, Case{2, 63, 2, 2, 128, 1 << 20}, Case{2, 65, 2, 2, 128, 1 << 20},
        Case{2, 129, 2, 2, 128, 1 << 20}, Case{1, 333, 2, 1, 128, 331}}) {
    EXPECT_EQ(kernel_of(c, DType::bf16, true), "own, Hopper");
    check_bf16_on_cuda(c);
  }
}

TEST(Attention, CudnnIsCloseToRefAndRepeatsItsBits) {
  if (kernel_of({1, 256, 1, 1, 64, 256}, DType::bf16, true) != "cudnn")
    GTEST_SKIP() << "cuDNN 9 or the Hopper device that it is used on is missing";
  const bool before = set_sm90_attention(false);
  for (const Case& c :
       {Case{2, 256, 2, 2, 128, 1 << 20}, Case{2, 256, 4, 2, 64, 1 << 20},
        Case{1, 384, 4, 1, 128, 100}, Case{1, 256, 2, 2, 64, 0}, Case{1, 256, 2, 1, 128, 1},
        Case{1, 256, 2, 2, 128, 127}, Case{1, 256, 2, 2, 128, 128}, Case{1, 256, 2, 2, 64, 254},
        Case{1, 256, 1, 1, 64, 255}, Case{3, 128, 2, 1, 40, 31}}) {
    EXPECT_EQ(kernel_of(c, DType::bf16, false), "cudnn");
    EXPECT_EQ(kernel_of(c, DType::bf16, true), "cudnn");
    check_bf16_on_cuda(c);
  }
  // Which of the two serves a length that is no multiple of 128 depends on cuDNN's version.
  for (const Case& c : {Case{2, 100, 2, 1, 64, 33}, Case{1, 2, 2, 2, 128, 5},
                        Case{1, 333, 2, 1, 128, 331}, Case{1, 65, 1, 1, 64, 0}}) {
    check_bf16_on_cuda(c);
  }
  set_sm90_attention(before);
}

TEST(Attention, CudnnLeavesTheRestToOurKernels) {
  for (const bool backward : {false, true}) {
    EXPECT_EQ(kernel_of({1, 128, 2, 1, 64, 9}, DType::f32, backward), "own");
    EXPECT_EQ(kernel_of({1, 128, 2, 1, 37, 9}, DType::bf16, backward), "own");
    EXPECT_EQ(kernel_of({1, 128, 2, 1, 256, 9}, DType::bf16, backward), "own");
    EXPECT_EQ(kernel_of({1, 1, 2, 1, 64, 9}, DType::bf16, backward), "own");
  }
}

TEST(Attention, VisiblePairs) {
  for (const int64_t tokens : {1, 2, 9}) {
    for (const int64_t window : {0, 1, 4, 8, 9, 100}) {
      int64_t pairs = 0;
      for (int64_t i = 0; i < tokens; ++i) {
        for (int64_t j = 0; j <= i; ++j) pairs += j >= i - window ? 1 : 0;
      }
      EXPECT_EQ(attention_visible_pairs(tokens, window), pairs);
    }
  }
}

TEST(Attention, RefusesWrongOperands) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"q", {DType::f32, {1, 4, 4, 8}}, SlotRole::parameter});
  slots->add({"k", {DType::f32, {1, 4, 3, 8}}, SlotRole::parameter});
  slots->add({"k2", {DType::f32, {1, 4, 2, 8}}, SlotRole::parameter});
  slots->add({"k5", {DType::f32, {1, 5, 2, 8}}, SlotRole::parameter});
  Program program("p", slots);
  Builder b(program, op_table());
  const auto error = [&](ErrorKind kind, const char* k, const char* v, int64_t window,
                         double scale) {
    return testing::error_of(
        kind, [&] { attention(b, b.slot("q"), b.slot(k), b.slot(v), window, scale); });
  };
  EXPECT_EQ(error(ErrorKind::shape, "k", "k", 4, 1.0),
            "attention: 3 key/value heads, expected a divisor of 4 query heads");
  EXPECT_EQ(error(ErrorKind::shape, "k5", "k5", 4, 1.0),
            "attention: k has shape (1, 5, 2, 8), expected (1, 4, 2, 8)");
  EXPECT_EQ(error(ErrorKind::shape, "k2", "k", 4, 1.0),
            "attention: v has shape (1, 4, 3, 8), expected (1, 4, 2, 8)");
  EXPECT_EQ(error(ErrorKind::usage, "k2", "k2", -1, 1.0),
            "attention: window is -1, expected 0 or more");
  EXPECT_EQ(error(ErrorKind::usage, "k2", "k2", 1, 0.0),
            "attention: softmax_scale is 0, expected a positive number");
}

}  // namespace
}  // namespace tightloop
