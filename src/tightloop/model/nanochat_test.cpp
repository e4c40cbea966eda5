#include "tightloop/model/nanochat.h"

#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "tightloop/core/rng.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/common/interpreter.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr Recipe kNewer = Recipe::nanochat_2026_07, kOlder = Recipe::nanochat_2026_02;

NanochatSizes sizes(Recipe recipe,
                    int64_t depth,
                    int64_t sequence = 2048,
                    const std::string& pattern = "SSSL") {
  return nanochat_sizes(nanochat_from_depth(recipe, depth, 64, 128, sequence, 32768, pattern));
}

TEST(NanochatSizes, PublishedCounts) {
  const NanochatSizes d12 = sizes(kOlder, 12);
  EXPECT_EQ(d12.parameters, 286262424);
  EXPECT_EQ(d12.matrices, 84935808);  // gates included
  EXPECT_EQ(d12.scaling, 110101632);
  EXPECT_EQ(d12.value_embeddings, 150994944);
  EXPECT_EQ(d12.flops_per_token, 802167552);
  EXPECT_EQ(sizes(kOlder, 12, 512, "L").flops_per_token, 717232896);
  EXPECT_EQ(sizes(kNewer, 12).scaling, 110100912);
}

TEST(NanochatSizes, FlopsOfOtherDepths) {
  struct Row {
    int64_t depth;
    double older, newer;
  };
  for (const Row& row : {Row{4, 8.494e7, 8.022e7},
                         {8, 3.146e8, 2.957e8},
                         {20, 3.004e9, 2.886e9},
                         {24, 4.9451e9, 4.775e9},
                         {26, 6.185e9, 5.991e9}}) {
    const auto older = static_cast<double>(sizes(kOlder, row.depth).flops_per_token);
    const auto newer = static_cast<double>(sizes(kNewer, row.depth).flops_per_token);
    EXPECT_NEAR(older / row.older, 1.0, 2e-4) << row.depth;  // the table has four digits
    EXPECT_NEAR(newer / row.newer, 1.0, 2e-4) << row.depth;
  }
}

TEST(NanochatConfig, Windows) {
  const auto reach = [](Recipe recipe, int64_t sequence, int64_t layer) {
    return nanochat_from_depth(recipe, 12, 64, 128, sequence, 32768, "SSSL").window(layer);
  };
  EXPECT_EQ(reach(kOlder, 2048, 0), 1024);
  EXPECT_EQ(reach(kNewer, 2048, 0), 512);
  EXPECT_EQ(reach(kNewer, 1024, 1), 256);
  EXPECT_EQ(reach(kNewer, 512, 2), 128);
  EXPECT_EQ(reach(kNewer, 600, 2), 256);  // 150 rounded up to a multiple of 128
  EXPECT_EQ(reach(kNewer, 2048, 3), 2048);
  // The last layer is long, whatever the pattern says.
  EXPECT_EQ(nanochat_from_depth(kNewer, 3, 64, 128, 2048, 100, "S").window(2), 2048);
}

const NanochatParameter& find(const std::vector<NanochatParameter>& all, std::string_view name) {
  for (const NanochatParameter& p : all) {
    if (p.name == name) return p;
  }
  throw Error(ErrorKind::internal, std::string(name));
}

std::vector<float> values(const NanochatParameter& p, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(p.shape.elems()), -7.0f);
  init_parameter(p, seed, {x.data(), {DType::f32, p.shape}});
  return x;
}

struct Moments {
  double mean = 0.0, stddev = 0.0, low = 1e9, high = -1e9;
};

Moments moments(const std::vector<float>& x) {
  Moments m;
  double squares = 0.0;
  for (const float v : x) {
    m.mean += v;
    squares += static_cast<double>(v) * v;
    m.low = std::min(m.low, static_cast<double>(v));
    m.high = std::max(m.high, static_cast<double>(v));
  }
  m.mean /= static_cast<double>(x.size());
  m.stddev = std::sqrt(squares / static_cast<double>(x.size()) - m.mean * m.mean);
  return m;
}

// Six matrices a layer and the head's.
TEST(NanochatLoss, CastsItsMatricesInOneOp) {
  const NanochatConfig config = nanochat_from_depth(kNewer, 2, 64, 64, 32, 100, "L");
  auto slots = std::make_shared<SlotTable>();
  declare_nanochat(*slots, config, DType::f32, 32);
  for (const char* name : {"tokens", "targets"})
    slots->add({name, {DType::i32, {2, 32}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value loss = nanochat_loss(b, config, b.slot("tokens"), b.slot("targets"), DType::bf16,
                                   LogitsDtype::as_activations);
  differentiate(program, op_table(), sum(b, loss), {});
  program.validate();
  std::vector<size_t> casts;
  for (const Op& op : program.ops()) {
    if (op.def->name == "cast") casts.push_back(op.inputs.size());
  }
  EXPECT_EQ(casts, std::vector<size_t>{2 * 6 + 1});
  for (const NanochatParameter& p : nanochat_parameters(config))
    EXPECT_TRUE(slots->find(grad_name(p.name))) << p.name;
}

// On the reference device casts change nothing: what differs between the two Programs is how
// gradients find their way through them.
TEST(NanochatLoss, NarrowProgramHasTheSameGradients) {
  const NanochatConfig config = nanochat_from_depth(kNewer, 4, 16, 16, 32, 50, "SL");
  const auto run = [&](DType dtype) {
    auto slots = std::make_shared<SlotTable>();
    declare_nanochat(*slots, config, DType::f32, 32);
    for (const char* name : {"tokens", "targets"})
      slots->add({name, {DType::i32, {2, 32}}, SlotRole::input});
    Program program("p", slots);
    Builder b(program, op_table());
    const Value loss = nanochat_loss(b, config, b.slot("tokens"), b.slot("targets"), dtype,
                                     LogitsDtype::as_activations);
    const Value total = sum(b, loss);
    differentiate(program, op_table(), total, {});
    Interpreter interpreter(program, Device::ref);
    uint64_t stream = 0;
    for (const Slot& slot : slots->all()) {
      Rng rng(3, ++stream);
      const TensorView t = interpreter.slot(slot.name);
      if (slot.role == SlotRole::gradient) continue;
      for (int64_t i = 0; i < t.elems(); ++i)
        set_element(
            t, i,
            slot.role == SlotRole::input ? static_cast<double>(rng.below(50)) : 0.2 * rng.normal());
    }
    interpreter.run();
    std::map<std::string, std::vector<double>> out;
    out["loss"].push_back(get_element(interpreter.view(total), 0));
    for (const Slot& slot : slots->all()) {
      if (slot.role != SlotRole::gradient) continue;
      const TensorView t = interpreter.slot(slot.name);
      for (int64_t i = 0; i < t.elems(); ++i) out[slot.name].push_back(get_element(t, i));
    }
    return out;
  };
  const auto wide = run(DType::f32), narrow = run(DType::bf16);
  EXPECT_EQ(wide.size(), 1 + nanochat_parameters(config).size());
  ASSERT_EQ(wide.size(), narrow.size());
  for (const auto& [name, values] : wide) {
    double largest = 0.0, worst = 0.0;
    const std::vector<double>& others = narrow.at(name);
    ASSERT_EQ(values.size(), others.size()) << name;
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::abs(values[i]));
      worst = std::max(worst, std::abs(values[i] - others[i]));
    }
    EXPECT_GT(largest, 0.0) << name;
    EXPECT_LE(worst, 1e-9 * largest) << name;
  }
}

TEST(NanochatInit, DistributionsOfBothRecipes) {
  for (const Recipe recipe : {kOlder, kNewer}) {
    SCOPED_TRACE(name_of(recipe));
    const bool newer = recipe == kNewer;
    const auto all = nanochat_parameters(nanochat_from_depth(recipe, 4, 64, 64, 128, 1000, "SSSL"));
    const double s = std::sqrt(3.0 / 256.0);  // width 256
    const auto uniform = [&](std::string_view name, double low, double high) {
      const Moments m = moments(values(find(all, name), 1));
      const double width = high - low;
      EXPECT_GE(m.low, low) << name;
      EXPECT_LE(m.high, high) << name;
      EXPECT_NEAR(m.mean, 0.5 * (low + high), 0.02 * width) << name;
      EXPECT_NEAR(m.stddev, width / std::sqrt(12.0), 0.02 * width) << name;
    };
    const auto normal = [&](std::string_view name, double stddev) {
      const Moments m = moments(values(find(all, name), 1));
      EXPECT_NEAR(m.mean, 0.0, 0.02 * stddev) << name;
      EXPECT_NEAR(m.stddev, stddev, 0.02 * stddev) << name;
    };
    normal("transformer.wte.weight", newer ? 0.8 : 1.0);
    normal("lm_head.weight", 0.001);
    for (const char* name : {"c_q", "c_k", "c_v"})
      uniform(fmt::format("transformer.h.1.attn.{}.weight", name), -s, s);
    const double fc = newer ? 0.4 * s : s;
    uniform("transformer.h.2.mlp.c_fc.weight", -fc, fc);
    uniform("value_embeds.3.weight", -s, s);
    for (const char* name :
         {"transformer.h.0.attn.c_proj.weight", "transformer.h.0.mlp.c_proj.weight"})
      EXPECT_EQ(moments(values(find(all, name), 1)).stddev, 0.0) << name;

    const auto list = [&](std::string_view name) { return values(find(all, name), 1); };
    const std::vector<float> resid = list("resid_lambdas"), x0 = list("x0_lambdas");
    EXPECT_FLOAT_EQ(resid[0], newer ? 1.15f : 1.0f);
    EXPECT_FLOAT_EQ(resid[3], newer ? 1.05f : 1.0f);
    EXPECT_FLOAT_EQ(x0[0], newer ? 0.20f : 0.1f);
    EXPECT_FLOAT_EQ(x0[3], newer ? 0.05f : 0.1f);
    const std::vector<float> gate = list("transformer.h.1.attn.ve_gate.weight");
    EXPECT_EQ(gate.size(), newer ? 4u * 12u : 4u * 32u);
    const Moments g = moments(gate);
    EXPECT_GE(g.low, 0.0);
    EXPECT_LE(g.high, newer ? 0.02 : 0.0);
    if (!newer) continue;
    EXPECT_GT(g.stddev, 0.002);
    EXPECT_EQ(list("smear_lambda"), std::vector<float>{0.0f});
    EXPECT_EQ(list("backout_lambda"), std::vector<float>{0.2f});
    EXPECT_EQ(list("smear_gate.weight").size(), 24u);
  }
}

TEST(NanochatInit, SeedsAndNamesGiveOtherValues) {
  const auto all = nanochat_parameters(nanochat_from_depth(kNewer, 2, 32, 32, 64, 100, "L"));
  const auto& q = find(all, "transformer.h.0.attn.c_q.weight");
  EXPECT_EQ(values(q, 1), values(q, 1));
  EXPECT_NE(values(q, 1), values(q, 2));
  EXPECT_NE(values(q, 1), values(find(all, "transformer.h.0.attn.c_k.weight"), 1));
}

TEST(NanochatConfig, JsonRoundTripAndImpossibleSizes) {
  NanochatConfig c = nanochat_from_depth(kOlder, 3, 64, 64, 256, 777, "SL");
  EXPECT_EQ(nanochat_config_from_json(nanochat_config_json(c), "config.json"), c);
  c.n_kv_head = 2;  // of 3 heads
  EXPECT_THROW(c.check(), Error);
  c.n_kv_head = 3;
  c.window_pattern = "SX";
  EXPECT_THROW(c.check(), Error);
}

}  // namespace
}  // namespace tightloop
