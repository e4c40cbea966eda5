#include "tightloop/engine/rewrite/rewrite.h"

#include <algorithm>
#include <cmath>

#include "tightloop/core/rng.h"
#include "tightloop/core/unit_testing.h"
#include "tightloop/engine/executable.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/common/interpreter.h"
#include "tightloop/ops/cross_entropy/cross_entropy.h"
#include "tightloop/ops/linear/linear.h"
#include "tightloop/ops/relu2/relu2.h"
#include "tightloop/ops/rmsnorm/rmsnorm.h"
#include "tightloop/ops/rope/rope.h"
#include "tightloop/ops/scaled_add/scaled_add.h"
#include "tightloop/ops/softcap/softcap.h"
#include "tightloop/program/differentiate.h"

/// Where each rewrite applies and what it says where it does not. That rewritten Programs keep
/// their function is the matter of tests/cross/rewrite_property_test.cpp.
namespace tightloop {
namespace {

class Fixture {
 public:
  std::shared_ptr<SlotTable> slots = std::make_shared<SlotTable>();
  Program program{"p", slots};
  Builder b{program, op_table()};

  Value parameter(const std::string& name, const Shape& shape) {
    slots->add({name, {DType::f32, shape}, SlotRole::parameter});
    return b.slot(name);
  }
  void output(const std::string& name, Value v) {
    slots->add({name, program.type(v), SlotRole::output});
    store(b, v, b.slot(name), false);
  }
  RewriteReport apply(const std::string& name) {
    return apply_rewrites(program, op_table(), std::vector{name}, {.ce_chunk_bytes = 1024}).at(0);
  }
  int64_t count(std::string_view op) const {
    return std::count_if(program.ops().begin(), program.ops().end(),
                         [&](const Op& o) { return o.def->name == op; });
  }
};

void expect_refusal(const RewriteReport& report, std::string_view why) {
  EXPECT_TRUE(report.applied.empty());
  ASSERT_EQ(report.not_applied.size(), 1u);
  EXPECT_NE(report.not_applied[0].find(why), std::string::npos) << report.not_applied[0];
}

constexpr int64_t kRows = 24, kWidth = 8, kVocab = 50, kPadded = 64;

/// linear -> softcap -> cross_entropy, with per-token loss and lse as outputs.
struct Head : Fixture {
  Value capped, loss;
  Head() {
    slots->add({"targets", {DType::i32, {kRows}}, SlotRole::input});
    b.set_scope("head");
    const Value x = parameter("x", {kRows, kWidth}), w = parameter("w", {kPadded, kWidth});
    capped = softcap(b, linear(b, x, w), 15.0);
    const CrossEntropyValues ce =
        cross_entropy(b, capped, b.slot("targets"), {}, {.vocab = kVocab});
    loss = ce.loss;
    output("loss", ce.loss);
    output("lse", ce.lse);
  }
  void train() { differentiate(program, op_table(), sum(b, loss), {}); }

  /// loss, then lse, of every row; one target is ignored.
  std::vector<float> run() const {
    const Plan plan = make_plan(program, Device::cpu);
    const SlotStore store(slots, Device::cpu);
    const Workspace workspace({&plan});
    Executable exe(program, plan, store, workspace);
    fill_normal(store.view("x").as<float>(), kRows * kWidth, 1, 0, 0.0f, 1.0f);
    fill_normal(store.view("w").as<float>(), kPadded * kWidth, 1, 1, 0.0f, 1.0f);
    for (int64_t i = 0; i < kRows; ++i)
      store.view("targets").as<int32_t>()[i] = i == 3 ? -1 : static_cast<int32_t>(2 * i % kVocab);
    exe.run();
    std::vector<float> values;
    for (const char* name : {"loss", "lse"}) {
      const float* v = store.view(name).as<float>();
      values.insert(values.end(), v, v + kRows);
    }
    return values;
  }
};

TEST(ChunkedCe, WithoutABackwardItIsTheForwardOnlyForm) {
  const std::vector<float> want = Head().run();
  Head head;
  const RewriteReport report = head.apply("chunked-ce");
  EXPECT_EQ(report.applied.size(), 1u);
  EXPECT_TRUE(report.not_applied.empty());
  EXPECT_EQ(head.count("linear_cross_entropy"), 1);
  EXPECT_EQ(head.count("linear") + head.count("softcap") + head.count("cross_entropy"), 0);
  const std::vector<float> got = head.run();
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << i;
  EXPECT_EQ(got[3], 0.0f);  // the ignored row
}

TEST(ChunkedCe, WithItsBackwardItIsOneSweep) {
  const std::vector<float> want = Head().run();
  Head head;
  head.train();
  EXPECT_EQ(head.apply("chunked-ce").applied.size(), 1u);
  EXPECT_EQ(head.count("linear_cross_entropy_grad"), 1);
  for (const char* gone : {"linear", "softcap", "cross_entropy", "cross_entropy_bwd", "softcap_bwd",
                           "linear_dx", "linear_dw"})
    EXPECT_EQ(head.count(gone), 0) << gone;
  const std::vector<float> got = head.run();  // loss and lse of every token are still there
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << i;
}

TEST(ChunkedCe, AnotherReaderOfTheLogitsKeepsThem) {
  for (const bool backward : {false, true}) {
    Head head;
    head.output("logits", head.capped);
    if (backward) head.train();
    const size_t ops = head.program.ops().size();
    expect_refusal(head.apply("chunked-ce"), "head: the logits have another reader");
    EXPECT_EQ(head.program.ops().size(), ops);
  }
}

TEST(FusedRmsnorm, TakesAddsAndLeavesTheRest) {
  Fixture f;
  const Value x = f.parameter("x", {4, 8}), y = f.parameter("y", {4, 8});
  f.output("h", rmsnorm(f.b, add(f.b, x, y), {}, 1e-5));
  EXPECT_EQ(f.apply("fused-rmsnorm").applied.size(), 1u);
  EXPECT_EQ(f.count("residual_rmsnorm"), 1);
  EXPECT_EQ(f.count("rmsnorm") + f.count("add"), 0);

  Fixture alone;
  alone.output("h", rmsnorm(alone.b, alone.parameter("x", {4, 8}), {}, 1e-5));
  expect_refusal(alone.apply("fused-rmsnorm"), "input is not a residual or scaled add");

  Fixture weighted;
  const Value a = weighted.parameter("x", {4, 8}), b = weighted.parameter("y", {4, 8});
  weighted.output(
      "h", rmsnorm(weighted.b, add(weighted.b, a, b), weighted.parameter("gamma", {8}), 1e-5));
  expect_refusal(weighted.apply("fused-rmsnorm"), "the norm has a weight");
}

// Two residual branches, one after the other. In bf16 the sum between them, which nothing else
// reads, is not stored, and the values stay what they were; in f32, where storing it rounds
// nothing, and where something else reads it, it stays.
TEST(FusedRmsnorm, StoresNoNarrowSumThatOnlyTheNextOneReads) {
  struct Branches : Fixture {
    Branches(DType dtype, bool other_reader) {
      const auto in = [&](const char* name) { return cast(b, parameter(name, {4, 8}), dtype); };
      const Value one = add(b, in("x"), in("y"));
      const Value h = rmsnorm(b, one, {}, 1e-5);
      const Value two = add(b, one, mul(b, h, in("u")));
      output("h", rmsnorm(b, two, {}, 1e-5));
      output("sum", two);
      if (other_reader) output("between", one);
    }
    std::vector<double> run() const {
      Interpreter interpreter(program, Device::ref);
      uint64_t stream = 0;
      for (const char* name : {"x", "y", "u"}) {
        Rng rng(5, ++stream);
        const TensorView t = interpreter.slot(name);
        for (int64_t i = 0; i < t.elems(); ++i) set_element(t, i, rng.normal());
      }
      interpreter.run();
      std::vector<double> values;
      for (const char* name : {"h", "sum"}) {
        const TensorView t = interpreter.slot(name);
        for (int64_t i = 0; i < t.elems(); ++i) values.push_back(get_element(t, i));
      }
      return values;
    }
    int64_t stored_sums() const {
      int64_t n = 0;
      for (const Op& op : program.ops())
        n += op.def->name == "residual_rmsnorm" && op.attrs.flag("stores_t");
      return n;
    }
  };
  for (const auto& [dtype, other_reader, stored] :
       {std::tuple{DType::bf16, false, 1}, {DType::bf16, true, 2}, {DType::f32, false, 2}}) {
    SCOPED_TRACE(fmt::format("{} other reader {}", name_of(dtype), other_reader));
    Branches f(dtype, other_reader);
    const std::vector<double> want = f.run();
    EXPECT_EQ(f.apply("fused-rmsnorm").applied.size(), 2u);
    f.program.validate();
    EXPECT_EQ(f.count("residual_rmsnorm"), 2);
    EXPECT_EQ(f.stored_sums(), stored);
    const std::vector<double> got = f.run();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12) << i;
  }
}

// Two scaled adds of one z. The gradient of z of the upper one has nothing to be added to yet; the
// lower one's is added to it although its own x has another reader, whose gradient comes after.
TEST(FusedRmsnorm, TakesGradientsOfZWhereTheyAre) {
  Fixture f;
  const Value z = mul(f.b, f.parameter("z", {4, 8}), f.parameter("u", {4, 8}));
  const Value x = mul(f.b, f.parameter("x", {4, 8}), f.parameter("v", {4, 8}));
  const Value lambda = f.parameter("lambda", {2});
  Value t = scaled_add(f.b, x, z, {}, {.vector = lambda, .index = 0});
  t = add(f.b, t, rmsnorm(f.b, t, {}, 1e-5));
  t = scaled_add(f.b, t, z, {}, {.vector = lambda, .index = 1});
  const Value h = rmsnorm(f.b, t, {}, 1e-5);
  differentiate(f.program, op_table(), sum(f.b, mul(f.b, h, x)), {});
  const RewriteReport report = f.apply("fused-rmsnorm");
  std::vector<std::string> backward;
  for (const RewriteSite& site : report.applied) {
    if (site.what.ends_with("_bwd")) backward.push_back(site.what);
  }
  EXPECT_EQ(backward, (std::vector<std::string>{
                          "rmsnorm_bwd + scaled_add_bwd -> residual_rmsnorm_bwd",
                          "rmsnorm_bwd + add + scaled_add_bwd + add -> residual_rmsnorm_bwd"}));
  EXPECT_TRUE(report.not_applied.empty());
  EXPECT_EQ(f.count("scaled_add_bwd"), 0);
  EXPECT_EQ(f.count("add"), 1);  // of the two gradients of x
}

TEST(FusedRelu2, TakesProductsAndLeavesTheRest) {
  Fixture f;
  f.output("y", relu2(f.b, linear(f.b, f.parameter("x", {4, 8}), f.parameter("w", {6, 8}))));
  EXPECT_EQ(f.apply("fused-relu2").applied.size(), 1u);
  EXPECT_EQ(f.count("linear_relu2"), 1);
  EXPECT_EQ(f.count("linear") + f.count("relu2"), 0);

  Fixture alone;
  alone.output("y", relu2(alone.b, alone.parameter("x", {4, 8})));
  expect_refusal(alone.apply("fused-relu2"), "does not come from a linear layer");

  Fixture read;
  const Value pre = linear(read.b, read.parameter("x", {4, 8}), read.parameter("w", {6, 8}));
  read.output("y", add(read.b, relu2(read.b, pre), pre));
  expect_refusal(read.apply("fused-relu2"), "input has another reader");
}

TEST(FusedQkNorm, TakesRotationsBeforeNorms) {
  for (const int norms : {1, 0}) {
    Fixture f;
    f.slots->add({"table", {DType::f32, {3, 8}}, SlotRole::constant});
    Value q = rope(f.b, f.parameter("q", {1, 3, 2, 8}), f.b.slot("table"));
    if (norms == 1) q = rmsnorm(f.b, q, {}, 1e-5);
    f.output("out", q);
    const RewriteReport report = f.apply("fused-qk-norm");
    if (norms == 0) {
      expect_refusal(report, "no weight-free RMSNorm is the only reader");
      continue;
    }
    EXPECT_EQ(report.applied.size(), 1u);
    EXPECT_EQ(f.count("qknorm_rope"), 1);
    EXPECT_EQ(f.count("rope") + f.count("rmsnorm"), 0);
  }
}

TEST(ApplyRewrites, UnknownNamesAreRefused) {
  Head head;
  expect_error(ErrorKind::usage, "unknown rewrite 'chunked-cee'; did you mean 'chunked-ce'?",
               [&] { head.apply("chunked-cee"); });
}

}  // namespace
}  // namespace tightloop
