#include "tightloop/ops/adamw/adamw.h"

#include <array>
#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

constexpr int64_t kSizes[] = {1, 15, 32, 33, 1000, 40007};

struct Settings {
  double lr = 0.02, beta1 = 0.8, beta2 = 0.96, eps = 1e-10, decay = 0.1;

  std::array<double, 8> at(int t) const {
    return {lr, beta1, beta2, eps, decay, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t), 0};
  }
};

/// The update as nanochat.md 5.1 states it, one number at a time.
struct Element {
  double p, m, v;

  void step(double g, const Settings& s, int t) {
    p = p * (1 - s.lr * s.decay);
    m = s.beta1 * m + (1 - s.beta1) * g;
    v = s.beta2 * v + (1 - s.beta2) * g * g;
    const double mean = m / (1 - std::pow(s.beta1, t)), square = v / (1 - std::pow(s.beta2, t));
    p = p - s.lr * mean / (std::sqrt(square) + s.eps);
  }
};

/// A Program of one adamw op over `count` elements, and the memory it runs in.
struct Fixture {
  std::shared_ptr<SlotTable> slots = std::make_shared<SlotTable>();
  Program program{"adamw", slots};
  std::unique_ptr<Interpreter> run;

  Fixture(Device device, int64_t count, DType dtype = DType::f32) {
    slots->add({"g", {DType::f32, {count}}, SlotRole::gradient});
    slots->add({"hyper", {DType::f32, {8}}, SlotRole::scalar});
    for (const char* name : {"p", "m", "v"})
      slots->add({name, {dtype, {count}}, SlotRole::optimizer});
    Builder b(program, op_table());
    adamw(b, b.slot("g"), b.slot("hyper"), b.slot("p"), b.slot("m"), b.slot("v"));
    program.validate();
    run = std::make_unique<Interpreter>(program, device);
    for (const char* name : {"g", "p", "m", "v"}) fill(name, [](int64_t) { return 0.0; });
  }

  template <typename Fn>
  void fill(std::string_view name, Fn&& value) {
    const TensorView t = run->slot(name);
    for (int64_t i = 0; i < t.elems(); ++i) run->set(t, i, value(i));
  }
  double get(std::string_view name, int64_t i) const { return run->get(run->slot(name), i); }
  void step(const Settings& settings, int t) {
    fill("hyper", [&](int64_t i) { return settings.at(t)[static_cast<size_t>(i)]; });
    run->run();
  }
};

double stored(double x, DType dtype) {
  const auto narrow = static_cast<float>(x);
  return static_cast<double>(dtype == DType::bf16 ? to_float(to_bf16(narrow)) : narrow);
}

TEST(Adamw, FollowsTheFormulaOverSeveralSteps) {
  const Settings s;
  for (Device device : testing::all_devices()) {
    for (int64_t count : kSizes) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), count));
      Fixture f(device, count);
      std::vector<Element> expected(static_cast<size_t>(count));
      Rng rng(3, static_cast<uint64_t>(count));
      for (Element& e : expected) e = {stored(rng.normal(), DType::f32), 0, 0};
      f.fill("p", [&](int64_t i) { return expected[static_cast<size_t>(i)].p; });
      for (int t = 1; t <= 4; ++t) {
        f.fill("g", [&](int64_t i) {
          const double g = stored(0.01 * rng.normal(), DType::f32);
          expected[static_cast<size_t>(i)].step(g, s, t);
          return g;
        });
        f.step(s, t);
      }
      // But for the reference, beta2 is a float32: 1 - 0.96 is then off by 7e-7.
      const double tolerance = device == Device::ref ? 1e-13 : 4e-6;
      for (int64_t i = 0; i < count; ++i) {
        const Element& e = expected[static_cast<size_t>(i)];
        ASSERT_NEAR(f.get("p", i), e.p, tolerance * (1 + std::abs(e.p))) << i;
        ASSERT_NEAR(f.get("m", i), e.m, tolerance * 0.01) << i;
        ASSERT_NEAR(f.get("v", i), e.v, tolerance * 1e-3) << i;
      }
    }
  }
}

TEST(Adamw, AConstantGradientMovesByTheLearningRate) {
  const Settings s{.decay = 0.0};
  Fixture f(Device::cpu, 40);
  f.fill("g", [](int64_t i) { return i % 2 == 0 ? 3e-4 : -5.0; });
  for (int t = 1; t <= 5; ++t) f.step(s, t);
  for (int64_t i = 0; i < 40; ++i) EXPECT_NEAR(f.get("p", i), i % 2 == 0 ? -0.1 : 0.1, 1e-6);
}

TEST(Adamw, DecayFollowsTheLearningRateAndNeedsNoGradient) {
  const Settings s{.lr = 0.5, .decay = 0.25};
  Fixture f(Device::cpu, 40);
  f.fill("p", [](int64_t i) { return static_cast<double>(i - 7); });
  f.step(s, 1);
  for (int64_t i = 0; i < 40; ++i)
    EXPECT_FLOAT_EQ(static_cast<float>(f.get("p", i)), 0.875f * static_cast<float>(i - 7));
}

TEST(Adamw, Bfloat16IsRoundedOncePerStep) {
  const Settings s;
  for (Device device : testing::tested_devices()) {
    for (int64_t count : kSizes) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), count));
      Fixture f(device, count, DType::bf16);
      std::vector<Element> expected(static_cast<size_t>(count));
      Rng rng(4, static_cast<uint64_t>(count));
      for (Element& e : expected)
        e = {stored(rng.normal(), DType::bf16), stored(0.01 * rng.normal(), DType::bf16),
             stored(std::abs(1e-4 * rng.normal()) + 1e-5, DType::bf16)};
      f.fill("p", [&](int64_t i) { return expected[static_cast<size_t>(i)].p; });
      f.fill("m", [&](int64_t i) { return expected[static_cast<size_t>(i)].m; });
      f.fill("v", [&](int64_t i) { return expected[static_cast<size_t>(i)].v; });
      f.fill("g", [&](int64_t i) {
        const double g = stored(0.01 * rng.normal(), DType::f32);
        expected[static_cast<size_t>(i)].step(g, s, 7);
        return g;
      });
      f.step(s, 7);
      // Half a unit in the last of 8 places, and what float32 may shift before the rounding.
      constexpr double kHalfUlp{1.0 / 256.0 + 1e-5};
      for (int64_t i = 0; i < count; ++i) {
        const Element& e = expected[static_cast<size_t>(i)];
        ASSERT_NEAR(f.get("p", i), e.p, kHalfUlp * std::abs(e.p) + 1e-6) << i;
        ASSERT_NEAR(f.get("m", i), e.m, kHalfUlp * std::abs(e.m) + 1e-8) << i;
        ASSERT_NEAR(f.get("v", i), e.v, kHalfUlp * std::abs(e.v)) << i;
      }
    }
  }
}

TEST(Adamw, SameBitsForAnyNumberOfThreads) {
  const int threads_before = thread_count();
  std::vector<float> first;
  for (int threads : {1, 2, 5}) {
    set_thread_count(threads);
    Fixture f(Device::cpu, 100001);
    Rng rng(5, 0);
    f.fill("p", [&](int64_t) { return rng.normal(); });
    f.fill("g", [&](int64_t) { return rng.normal(); });
    f.step({}, 1);
    const float* p = f.run->slot("p").as<float>();
    if (first.empty())
      first.assign(p, p + 100001);
    else
      EXPECT_EQ(std::memcmp(first.data(), p, first.size() * sizeof(float)), 0) << threads;
  }
  set_thread_count(threads_before);
}

TEST(Adamw, DecayedAveragesNeverBecomeDenormal) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Fixture f(Device::cpu, 70, dtype);
    f.fill("m", [](int64_t) { return 3e-38; });
    f.fill("v", [](int64_t) { return 2e-38; });
    for (int t = 5; t < 60; ++t) f.step({}, t);
    for (int64_t i = 0; i < 70; ++i) {
      for (const char* name : {"m", "v"}) {
        EXPECT_NE(std::fpclassify(static_cast<float>(f.get(name, i))), FP_SUBNORMAL) << name;
        EXPECT_LE(f.get(name, i), 4e-38);
      }
      EXPECT_NEAR(f.get("p", i), 0.0, 1e-20);
    }
  }
  volatile float tiny = 1.2e-38f;
  EXPECT_GT(tiny * 0.5f, 0.0f) << "the caller's treatment of denormals changed";
}

TEST(Adamw, RefusesStateOfAnotherType) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"g", {DType::f32, {4}}, SlotRole::gradient});
  slots->add({"hyper", {DType::f32, {8}}, SlotRole::scalar});
  slots->add({"short", {DType::f32, {7}}, SlotRole::scalar});
  slots->add({"p", {DType::bf16, {4}}, SlotRole::parameter});
  slots->add({"m", {DType::f32, {4}}, SlotRole::optimizer});
  slots->add({"wide", {DType::bf16, {5}}, SlotRole::optimizer});
  Program program("p", slots);
  Builder b(program, op_table());
  const auto emit = [&](const char* g, const char* hyper, const char* p, const char* m) {
    return [&b, g, hyper, p, m] {
      adamw(b, b.slot(g), b.slot(hyper), b.slot(p), b.slot(m), b.slot("p"));
    };
  };
  EXPECT_EQ(testing::error_of(ErrorKind::dtype, emit("g", "hyper", "p", "m")),
            "adamw: m is f32, expected bf16");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, emit("g", "hyper", "p", "wide")),
            "adamw: m has shape (5), expected (4)");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, emit("g", "short", "p", "p")),
            "adamw: hyper has shape (7), expected (8)");
  EXPECT_EQ(testing::error_of(ErrorKind::dtype, emit("p", "hyper", "p", "p")),
            "adamw: g is bf16, expected f32");
}

}  // namespace
}  // namespace tightloop
