#include "tightloop/optim/optimizer.h"

#include <cmath>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/ops/common/interpreter.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr Recipe kNewer = Recipe::nanochat_2026_07, kOlder = Recipe::nanochat_2026_02;

std::vector<ParameterGroup> groups_of(Recipe recipe) {
  const std::vector<NamedShape> parameters{{"transformer.wte.weight", {10, 6}},
                                           {"resid_lambdas", {3}},
                                           {"transformer.h.0.mlp.c_fc.weight", {8, 4}},
                                           {"transformer.h.0.mlp.c_proj.weight", {4, 8}},
                                           {"transformer.h.1.mlp.c_proj.weight", {4, 8}}};
  return nanochat_groups(recipe, parameters, 768, default_rates(recipe), 1.0, 0.3);
}

std::shared_ptr<SlotTable> parameter_slots(DType embedding = DType::f32) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"transformer.wte.weight", {embedding, {10, 6}}, SlotRole::parameter});
  slots->add({"resid_lambdas", {DType::f32, {3}}, SlotRole::parameter});
  slots->add({"transformer.h.0.mlp.c_fc.weight", {DType::f32, {8, 4}}, SlotRole::parameter});
  slots->add({"transformer.h.0.mlp.c_proj.weight", {DType::f32, {4, 8}}, SlotRole::parameter});
  slots->add({"transformer.h.1.mlp.c_proj.weight", {DType::f32, {4, 8}}, SlotRole::parameter});
  return slots;
}

TEST(Optimizer, DeclaresItsSlots) {
  auto slots = parameter_slots(DType::bf16);
  const Program program =
      build_optimizer("optimizer", slots, op_table(), groups_of(kNewer), kNewer);
  program.validate();
  const auto slot = [&](std::string_view name) { return (*slots)[slots->get(name)]; };
  const auto expect = [&](std::string_view name, DType dtype, const Shape& shape, SlotRole role) {
    EXPECT_EQ(to_string(slot(name).type), to_string(Type{dtype, shape})) << name;
    EXPECT_EQ(slot(name).role, role) << name;
  };
  expect("transformer.wte.weight.m", DType::bf16, {10, 6}, SlotRole::optimizer);
  expect("transformer.wte.weight.v", DType::bf16, {10, 6}, SlotRole::optimizer);
  expect("resid_lambdas.v", DType::f32, {3}, SlotRole::optimizer);
  expect("transformer.h.0.mlp.c_fc.weight.momentum", DType::f32, {8, 4}, SlotRole::optimizer);
  expect("transformer.h.0.mlp.c_fc.weight.second_moment", DType::f32, {8, 1}, SlotRole::optimizer);
  expect("transformer.h.0.mlp.c_proj.weight.second_moment", DType::f32, {1, 8},
         SlotRole::optimizer);
  expect("grad.transformer.wte.weight", DType::f32, {10, 6}, SlotRole::gradient);
  expect("hyper.embed", DType::f32, {8}, SlotRole::scalar);
  expect("hyper.muon 4x8", DType::f32, {8}, SlotRole::scalar);
  // 5 parameters, 5 gradients, 2 states each, 4 groups.
  EXPECT_EQ(slots->size(), 5 + 5 + 10 + 4);
  EXPECT_EQ(program.ops().size(), 2u + 3 * 3);
}

TEST(Optimizer, RecipesDifferInPolarExpress) {
  for (Recipe recipe : {kNewer, kOlder}) {
    const Program program =
        build_optimizer("optimizer", parameter_slots(), op_table(), groups_of(recipe), recipe);
    for (const Op& op : program.ops()) {
      if (op.def->name != "polar_express") continue;
      EXPECT_EQ(op.attrs.number("norm_factor"), recipe == kNewer ? 1.01 : 1.02);
      EXPECT_EQ(op.attrs.flag("row_equilibrate"), recipe == kNewer);
      EXPECT_EQ(op.attrs.flag("renormalize"), recipe == kNewer);
      EXPECT_EQ(op.attrs.integer("steps"), 5);
    }
  }
}

TEST(Optimizer, StacksMatricesOfOneShape) {
  // Of the two 4 x 8 matrices; the 8 x 4 one stays alone.
  const auto polar_sizes = [&](const OptimizerCompute& compute) {
    const Program program = build_optimizer("optimizer", parameter_slots(), op_table(),
                                            groups_of(kNewer), kNewer, compute);
    program.validate();
    std::multiset<size_t> sizes;
    for (const Op& op : program.ops()) {
      if (op.def->name != "polar_express") continue;
      sizes.insert(op.inputs.size());
      EXPECT_EQ(op.attrs.integer("dtype"), static_cast<int64_t>(compute.dtype));
      if (op.inputs.size() > 1) {
        EXPECT_EQ(op.scope, "optimizer/muon 4x8");
      }
    }
    return sizes;
  };
  EXPECT_EQ(polar_sizes({}), (std::multiset<size_t>{1, 1, 1}));
  EXPECT_EQ(polar_sizes({.dtype = DType::bf16, .stack_elems = 63}),
            (std::multiset<size_t>{1, 1, 1}));
  EXPECT_EQ(polar_sizes({.dtype = DType::bf16, .stack_elems = 64}), (std::multiset<size_t>{1, 2}));

  // A group may hold several shapes, and more matrices than fit into one op.
  auto slots = std::make_shared<SlotTable>();
  ParameterGroup group{.kind = OptimizerKind::muon, .name = "g", .parameters = {}, .lr = 0.1};
  for (int i = 0; i < 70; ++i) {
    group.parameters.push_back(fmt::format("w{}", i));
    const Shape shape = i < 67 ? Shape{2, 3} : Shape{3, 2};
    slots->add({group.parameters.back(), {DType::f32, shape}, SlotRole::parameter});
  }
  std::vector<size_t> sizes;
  const Program program = build_optimizer("optimizer", slots, op_table(), {group}, kNewer,
                                          {.stack_elems = kCudaStackElems});
  program.validate();
  for (const Op& op : program.ops()) {
    if (op.def->name == "polar_express") sizes.push_back(op.inputs.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{64, 3, 3}));
  // The long stack is a short line.
  ASSERT_EQ(program.ops()[1].def->name, "polar_express");  // between the other two steps
  const std::string line = to_string(program, program.ops()[1]);
  EXPECT_NE(line.find(":f32(2, 3), (62 more), %"), std::string::npos) << line;
  EXPECT_LT(line.size(), 300u) << line;
}

TEST(Optimizer, HypersOfAStep) {
  const auto groups = groups_of(kNewer);
  const Schedule schedule(kNewer, 2520, default_schedule(kNewer));
  std::map<std::string, std::vector<double>, std::less<>> written;
  write_hypers(groups, schedule, 9, [&](size_t group, std::span<const double> values) {
    written[hyper_name(groups[group].name)].assign(values.begin(), values.end());
  });
  ASSERT_EQ(written.size(), groups.size());
  // Step 9 of the warm-up over 40: rates are a quarter; the count of steps is 10.
  const std::vector<double> embed{
      0.075, 0.8, 0.995, 1e-10, 0.001, 1 - std::pow(0.8, 10), 1 - std::pow(0.995, 10), 0};
  const std::vector<double> muon{0.005, 0.85 + 0.12 * 9 / 400,
                                 0.9,   0.3 * 0.5 * (1 + std::cos(std::acos(-1.0) * 9 / 2520)),
                                 0,     0,
                                 0,     0};
  ASSERT_EQ(written["hyper.embed"].size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(written["hyper.embed"][i], embed[i], 1e-15) << i;
    EXPECT_NEAR(written["hyper.muon 8x4"][i], muon[i], 1e-15) << i;
  }
  EXPECT_EQ(written["hyper.muon 8x4"], written["hyper.muon 4x8"]);
}

TEST(Optimizer, CpuFollowsTheReferenceOverSteps) {
  for (const auto& [recipe, stack_elems] :
       {std::pair<Recipe, int64_t>{kNewer, 0}, {kOlder, 0}, {kNewer, 64}}) {
    const auto groups = groups_of(recipe);
    auto slots = parameter_slots();
    Program program = build_optimizer("optimizer", slots, op_table(), groups, recipe,
                                      {.stack_elems = stack_elems});
    Builder b(program, op_table());
    emit_grad_sum_squares(b, groups);
    program.validate();
    Interpreter cpu(program, Device::cpu), ref(program, Device::ref);
    const Schedule schedule(recipe, 10, {.warmup_steps = 2, .warmdown_ratio = 0.5});
    for (int64_t it = 0; it < 3; ++it) {
      double squares = 0;
      for (const Interpreter* run : {&cpu, &ref}) {
        Rng rng(1, static_cast<uint64_t>(it));
        squares = 0;
        for (const Slot& slot : slots->all()) {
          const TensorView t = run->slot(slot.name);
          for (int64_t i = 0; i < t.elems(); ++i) {
            const auto x = static_cast<double>(static_cast<float>(rng.normal()));
            if (slot.role == SlotRole::parameter && it == 0) run->set(t, i, x);
            if (slot.role == SlotRole::optimizer && it == 0) run->set(t, i, 0.0);
            if (slot.role == SlotRole::gradient) run->set(t, i, x), squares += x * x;
          }
        }
        write_hypers(groups, schedule, it, [&](size_t group, std::span<const double> values) {
          const TensorView slot = run->slot(hyper_name(groups[group].name));
          for (size_t i = 0; i < values.size(); ++i)
            run->set(slot, static_cast<int64_t>(i), values[i]);
        });
      }
      cpu.run(), ref.run();
      EXPECT_NEAR(cpu.get(cpu.slot(kGradSumSquares), 0), squares, 1e-9 * squares);
      EXPECT_NEAR(ref.get(ref.slot(kGradSumSquares), 0), squares, 1e-9 * squares);
    }
    for (const Slot& slot : slots->all()) {
      if (slot.role != SlotRole::parameter && slot.role != SlotRole::optimizer) continue;
      const TensorView x = cpu.slot(slot.name), y = ref.slot(slot.name);
      double worst = 0, scale = 0;
      for (int64_t i = 0; i < x.elems(); ++i) {
        worst = std::max(worst, std::abs(cpu.get(x, i) - ref.get(y, i)));
        scale = std::max(scale, std::abs(ref.get(y, i)));
      }
      EXPECT_LE(worst, 2e-5 * scale) << slot.name;
      EXPECT_GT(scale, 0.0) << slot.name;
    }
  }
}

TEST(Optimizer, MuonNeedsAMatrix) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"w", {DType::f32, {3}}, SlotRole::parameter});
  const ParameterGroup group{
      .kind = OptimizerKind::muon, .name = "g", .parameters = {"w"}, .lr = 0.1};
  try {
    build_optimizer("optimizer", slots, op_table(), {group}, kNewer);
    FAIL() << "no error was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::shape);
    EXPECT_EQ(e.message(), "Muon: parameter 'w' has shape (3), expected a matrix");
  }
}

}  // namespace
}  // namespace tightloop
