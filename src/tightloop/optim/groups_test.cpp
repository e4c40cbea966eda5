#include "tightloop/optim/groups.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

std::vector<NamedShape> small_model() {
  return {{"transformer.wte.weight", {64, 48}},
          {"lm_head.weight", {64, 48}},
          {"transformer.h.0.attn.c_q.weight", {48, 48}},
          {"transformer.h.0.attn.c_k.weight", {24, 48}},
          {"transformer.h.0.attn.ve_gate.weight", {2, 12}},
          {"transformer.h.0.mlp.c_fc.weight", {192, 48}},
          {"transformer.h.0.mlp.c_proj.weight", {48, 192}},
          {"transformer.h.1.attn.c_q.weight", {48, 48}},
          {"value_embeds.0.weight", {64, 24}},
          {"resid_lambdas", {2}},
          {"x0_lambdas", {2}},
          {"smear_gate.weight", {1, 24}},
          {"smear_lambda", {1}},
          {"backout_lambda", {1}}};
}

std::vector<std::string> names(const std::vector<ParameterGroup>& groups) {
  std::vector<std::string> all;
  for (const ParameterGroup& g : groups) all.push_back(g.name);
  return all;
}

void expect_adamw(
    const ParameterGroup& g, double lr, double beta1, double beta2, double weight_decay) {
  SCOPED_TRACE(g.name);
  EXPECT_EQ(g.kind, OptimizerKind::adamw);
  EXPECT_NEAR(g.lr, lr, 1e-15);
  EXPECT_EQ(g.beta1, beta1);
  EXPECT_EQ(g.beta2, beta2);
  EXPECT_EQ(g.eps, 1e-10);
  EXPECT_EQ(g.weight_decay, weight_decay);
  EXPECT_FALSE(g.schedule_weight_decay);
}

TEST(Groups, TheNewerRecipe) {
  const Recipe recipe = Recipe::nanochat_2026_07;
  const auto groups = nanochat_groups(recipe, small_model(), 48, default_rates(recipe), 0.5, 0.7);
  EXPECT_EQ(names(groups), (std::vector<std::string>{"unembed", "embed", "value", "resid", "x0",
                                                     "smear", "muon 2x12", "muon 24x48",
                                                     "muon 48x48", "muon 48x192", "muon 192x48"}));
  // (48 / 768)^-1/2 = 4, times the factor 0.5.
  expect_adamw(groups[0], 0.016, 0.8, 0.96, 0.01);
  expect_adamw(groups[1], 0.6, 0.8, 0.995, 0.001);
  expect_adamw(groups[2], 0.3, 0.8, 0.995, 0.01);
  expect_adamw(groups[3], 0.0025, 0.8, 0.95, 0.05);
  expect_adamw(groups[4], 0.25, 0.96, 0.95, 0.0);
  expect_adamw(groups[5], 0.2, 0.8, 0.95, 0.0);  // no batch factor
  for (size_t i = 6; i < groups.size(); ++i) {
    EXPECT_EQ(groups[i].kind, OptimizerKind::muon);
    EXPECT_NEAR(groups[i].lr, 0.01, 1e-15);
    EXPECT_EQ(groups[i].beta2, 0.9);
    EXPECT_EQ(groups[i].weight_decay, 0.7);
    EXPECT_TRUE(groups[i].schedule_weight_decay);
  }
  EXPECT_EQ(groups[5].parameters,
            (std::vector<std::string>{"smear_gate.weight", "smear_lambda", "backout_lambda"}));
  EXPECT_EQ(groups[8].parameters, (std::vector<std::string>{"transformer.h.0.attn.c_q.weight",
                                                            "transformer.h.1.attn.c_q.weight"}));
}

TEST(Groups, TheOlderRecipe) {
  const Recipe recipe = Recipe::nanochat_2026_02;
  auto parameters = small_model();
  parameters.resize(parameters.size() - 3);
  const auto groups = nanochat_groups(recipe, parameters, 768, default_rates(recipe), 1.0, 0.2);
  EXPECT_EQ(names(groups).size(), 10u);
  EXPECT_EQ(groups[5].name, "muon 2x12");  // no smear group without its members
  expect_adamw(groups[0], 0.004, 0.8, 0.95, 0.0);
  expect_adamw(groups[1], 0.3, 0.8, 0.95, 0.0);
  expect_adamw(groups[2], 0.3, 0.8, 0.95, 0.0);
  expect_adamw(groups[3], 0.005, 0.8, 0.95, 0.0);
  expect_adamw(groups[4], 0.5, 0.96, 0.95, 0.0);
  EXPECT_EQ(groups[5].beta2, 0.95);
  EXPECT_EQ(groups[5].lr, 0.02);
}

TEST(Groups, EveryParameterIsInExactlyOne) {
  const Recipe recipe = Recipe::nanochat_2026_07;
  size_t members = 0;
  for (const auto& g : nanochat_groups(recipe, small_model(), 48, default_rates(recipe), 1, 1))
    members += g.parameters.size();
  EXPECT_EQ(members, small_model().size());
  for (const NamedShape& stranger :
       {NamedShape{"lm_head.bias", {64}}, NamedShape{"transformer.h.0.bias", {64}}}) {
    EXPECT_THROW(nanochat_groups(recipe, {stranger}, 48, default_rates(recipe), 1, 1), Error);
  }
}

TEST(Recipe, Names) {
  EXPECT_EQ(parse_recipe("2026-02"), Recipe::nanochat_2026_02);
  EXPECT_EQ(name_of(parse_recipe("2026-07")), "2026-07");
  EXPECT_THROW(parse_recipe("2025"), Error);
}

}  // namespace
}  // namespace tightloop
