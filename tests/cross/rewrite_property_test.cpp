#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/rng.h"
#include "tightloop/engine/executable.h"
#include "tightloop/engine/rewrite/rewrite.h"
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

/// Random small Programs: a residual stream that grows by random blocks, in all the shapes that
/// rewrites match or must leave alone, down to a cross-entropy. Rewritten and planned on the CPU,
/// and on cuda where there is one, they must agree with the plain Program interpreted in float64.
namespace tightloop {
namespace {

struct RandomProgram {
  std::shared_ptr<SlotTable> slots = std::make_shared<SlotTable>();
  int64_t B = 1, T = 1, C = 1, H = 1, V = 1;

  Value parameter(Builder& b, const std::string& name, const Shape& shape) {
    slots->add_or_find({name, {DType::f32, shape}, SlotRole::parameter});
    return b.slot(name);
  }

  /// The same Program for the same seed, over this object's slot table. In a wide one every product
  /// of the blocks sums over more than 256 elements, which kernels do in several parts.
  Program build(uint64_t seed, bool wide) {
    Rng rng(seed, 0);
    const auto chance = [&](int percent) {
      return rng.below(100) < static_cast<uint64_t>(percent);
    };
    B = 1 + static_cast<int64_t>(rng.below(2));
    T = 1 + static_cast<int64_t>(rng.below(9));
    H = 1 + static_cast<int64_t>(rng.below(2));
    C = H * 2 * (2 + static_cast<int64_t>(rng.below(8)));
    V = 3 + static_cast<int64_t>(rng.below(40));
    if (wide) C += 260;
    const int64_t Vp = (V + 7) / 8 * 8;

    Program program("random", slots);
    Builder b(program, op_table());
    Value x = parameter(b, "x", {B, T, C});
    slots->add_or_find({"targets", {DType::i32, {B, T}}, SlotRole::input});
    slots->add_or_find({"loss_scale", {DType::f32, {}}, SlotRole::scalar});
    slots->add_or_find({"table", {DType::f32, {T, C / H}}, SlotRole::constant});
    x = reshape(b, x, {B, T, C});
    const Value x0 = x;
    const Value lambdas = parameter(b, "lambdas", {4});
    const int blocks = 1 + static_cast<int>(rng.below(3));
    for (int i = 0; i < blocks; ++i) {
      const std::string at = std::to_string(i);
      b.set_scope("block " + at);
      if (chance(60))
        x = scaled_add(
            b, x, x0, {.vector = lambdas, .index = i},
            chance(70) ? ScaledTerm{.vector = lambdas, .index = 3} : ScaledTerm{.constant = 0.5});
      const Value weight = chance(25) ? parameter(b, "gamma" + at, {C}) : Value{};
      Value h = rmsnorm(b, x, weight, 1e-5, chance(30) ? 1.3 : 1.0);
      if (chance(40)) {
        const Value heads = reshape(b, h, {B, T, H, C / H});
        Value r = rope(b, heads, b.slot("table"));
        if (chance(75)) r = rmsnorm(b, r, {}, 1e-5, 1.2);
        h = reshape(b, r, {B, T, C});
      }
      const int64_t F = (wide ? 260 : 4) + static_cast<int64_t>(rng.below(30));
      const Value pre = linear(b, h, parameter(b, "up" + at, {F, C}));
      const Value hidden = relu2(b, pre);
      Value y = chance(75) ? linear(b, hidden, parameter(b, "down" + at, {C, F}))
                           : linear(b, add(b, hidden, pre), parameter(b, "down" + at, {C, F}));
      if (chance(15)) y = mul(b, y, y);
      x = add(b, x, y);
    }
    b.set_scope("head");
    if (chance(80)) x = rmsnorm(b, x, {}, 1e-5);
    Value logits = linear(b, x, parameter(b, chance(50) ? "head" : "head2", {Vp, C}));
    if (chance(70)) logits = softcap(b, logits, 5.0);
    const Value losses = cross_entropy(b, logits, b.slot("targets"), {}, {.vocab = V}).loss;
    Value loss = mul(b, sum(b, losses), b.slot("loss_scale"));
    if (chance(20))
      loss = add(b, loss, mul(b, sum(b, mul(b, logits, logits)), b.slot("loss_scale")));
    slots->add_or_find({"loss", {DType::f32, {}}, SlotRole::output});
    store(b, loss, b.slot("loss"), false);
    differentiate(program, op_table(), loss, {});
    program.validate();
    return program;
  }

  void fill(const std::function<TensorView(const std::string&)>& view, uint64_t seed) const {
    uint64_t stream = 1;
    for (const Slot& slot : slots->all()) {
      Rng rng(seed, ++stream);
      const TensorView t = view(slot.name);
      for (int64_t i = 0; i < t.elems(); ++i) {
        double value = 0.0;
        if (slot.name == "targets")
          value = static_cast<double>(rng.below(static_cast<uint64_t>(V) + 1)) - 1.0;
        else if (slot.name == "loss_scale")
          value = 1.0 / static_cast<double>(B * T);
        else if (slot.role == SlotRole::parameter || slot.role == SlotRole::constant)
          value = static_cast<double>(static_cast<float>(0.5 * rng.normal()));
        set_element(t, i, value);
      }
    }
  }
};

/// Largest difference over the largest element. Gradients of scales before a norm cancel almost to
/// nothing; they are compared with the size of what cancels, which is of order 0.1 and more here.
double worst_error(const TensorView& got, const TensorView& want) {
  double worst = 0.0, scale = 0.05;
  for (int64_t i = 0; i < got.elems(); ++i) {
    const double a = get_element(got, i), b = get_element(want, i);
    if (!std::isfinite(a)) return HUGE_VAL;
    worst = std::max(worst, std::abs(a - b));
    scale = std::max(scale, std::abs(b));
  }
  return worst / scale;
}

#ifdef TL_SANITIZED
constexpr uint64_t kPrograms{80};
#else
constexpr uint64_t kPrograms{200};
#endif
constexpr uint64_t kWideEvery{kPrograms / 10};

TEST(RewriteProperty, RandomProgramsKeepTheirFunction) {
  std::vector<Device> devices{Device::cpu, Device::ref};
  if (cuda::device_count() > 0) devices.push_back(Device::cuda);
  std::map<std::string, uint64_t> applied, refused, applied_wide;
  for (uint64_t seed = 1; seed <= kPrograms; ++seed) {
    SCOPED_TRACE(seed);
    const bool wide = seed % kWideEvery == 0;
    RandomProgram random;
    const Program plain = random.build(seed, wide);
    Interpreter truth(plain, Device::ref);
    random.fill([&](const std::string& name) { return truth.slot(name); }, seed);
    truth.run();

    Program rewritten = random.build(seed, wide);
    Rng rng(seed, 99);
    std::vector<std::string> names;
    for (const Rewrite& rewrite : all_rewrites()) {
      if (wide || rng.below(3) > 0) names.emplace_back(rewrite.name);
    }
    for (const RewriteReport& report :
         apply_rewrites(rewritten, op_table(), names, {.ce_chunk_bytes = 2048})) {
      applied[report.name] += report.applied.size();
      refused[report.name] += report.not_applied.size();
      if (wide) applied_wide[report.name] += report.applied.size();
    }
    for (Device device : devices) {
      const Plan plan = make_plan(rewritten, device);
      const SlotStore slots(random.slots, device);
      const Workspace workspace({&plan});
      Executable program(rewritten, plan, slots, workspace);
      random.fill([&](const std::string& name) { return slots.host(name); }, seed);
      for (const Slot& slot : random.slots->all()) slots.push(slot.name);
      program.run();
      // Sums over all elements that cancel, as the gradients of λ, differ most between kernels.
      const double tolerance =
          device == Device::ref ? 1e-9 : (device == Device::cuda ? 5e-4 : 2e-4);
      for (const Slot& slot : random.slots->all()) {
        if (slot.role != SlotRole::gradient && slot.name != "loss") continue;
        EXPECT_LE(worst_error(slots.pull(slot.name), truth.slot(slot.name)), tolerance)
            << slot.name << " on " << name_of(device);
      }
    }
  }
  // The generator must reach both: places where each rewrite applies, and places where it must not.
  for (const Rewrite& rewrite : all_rewrites()) {
    const std::string name(rewrite.name);
    EXPECT_GE(applied[name], kPrograms / 4) << name;
    EXPECT_GE(applied_wide[name], 2u) << name << ", in wide Programs";
    EXPECT_GE(refused[name], kPrograms / 20) << name;
  }
}

}  // namespace
}  // namespace tightloop
