#include "tightloop/ops/muon/muon.h"

#include <array>
#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

const Shape kShapes[] = {{1, 1}, {2, 12}, {12, 2}, {5, 5}, {33, 700}, {700, 33}, {64, 64}};
constexpr double kLr{0.02}, kMomentum{0.9}, kBeta2{0.95}, kDecay{0.3};

struct Fixture {
  std::shared_ptr<SlotTable> slots = std::make_shared<SlotTable>();
  Program program{"muon", slots};
  Value u;
  std::unique_ptr<Interpreter> run;

  Fixture(Device device, const Shape& shape) {
    for (const char* name : {"g", "momentum", "x", "p"})
      slots->add({name, {DType::f32, shape}, SlotRole::parameter});
    slots->add({"second", {DType::f32, muon_second_moment_shape(shape)}, SlotRole::optimizer});
    slots->add({"hyper", {DType::f32, {8}}, SlotRole::scalar});
    Builder b(program, op_table());
    u = muon_momentum(b, {b.slot("g")}, b.slot("hyper"), {b.slot("momentum")})[0];
    muon_update(b, {b.slot("x")}, b.slot("hyper"), {b.slot("p")}, {b.slot("second")});
    program.validate();
    run = std::make_unique<Interpreter>(program, device);
    Rng rng(9, static_cast<uint64_t>(shape[0] * 1000 + shape[1]));
    for (const char* name : {"g", "momentum", "x", "p", "second"}) {
      fill(name, [&](int64_t) {
        const double value = rng.normal() * (std::strcmp(name, "x") == 0 ? 0.1 : 1.0);
        return std::strcmp(name, "second") == 0 ? 0.01 * std::abs(value) : value;
      });
    }
    const std::array<double, 4> hyper{kLr, kMomentum, kBeta2, kDecay};
    const TensorView t = run->slot("hyper");  // exact on the reference device
    for (int64_t i = 0; i < 8; ++i) run->set(t, i, i < 4 ? hyper[static_cast<size_t>(i)] : 0.0);
  }

  template <typename Fn>
  void fill(std::string_view name, Fn&& value) {
    const TensorView t = run->slot(name);
    for (int64_t i = 0; i < t.elems(); ++i)
      run->set(t, i, static_cast<double>(static_cast<float>(value(i))));
  }
  std::vector<double> all(std::string_view name) const { return all(run->slot(name)); }
  std::vector<double> all(const TensorView& t) const {
    std::vector<double> values;
    for (int64_t i = 0; i < t.elems(); ++i) values.push_back(run->get(t, i));
    return values;
  }
};

double norm(const std::vector<double>& x) {
  double squares = 0;
  for (double value : x) squares += value * value;
  return std::sqrt(squares);
}

void expect_close(const std::vector<double>& got,
                  const std::vector<double>& want,
                  double tolerance,
                  const char* what) {
  ASSERT_EQ(got.size(), want.size());
  double scale = 0;
  for (double value : want) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], tolerance * scale) << what << " " << i;
}

/// nanochat.md section 6, steps 7 to 9, in terms of the transpose where the matrix is wide.
void expected_update(const Shape& shape,
                     const std::vector<double>& x,
                     std::vector<double>& p,
                     std::vector<double>& second) {
  const int64_t m = shape[0], n = shape[1], long_side = std::max(m, n), short_side = std::min(m, n);
  const auto at = [&](int64_t i, int64_t j) {  // i along the long side
    return static_cast<size_t>(m >= n ? i * n + j : j * n + i);
  };
  std::vector<double> mean(static_cast<size_t>(long_side)), w(mean);
  double top = 0, bottom = 0;
  for (int64_t i = 0; i < long_side; ++i) {
    const auto k = static_cast<size_t>(i);
    for (int64_t j = 0; j < short_side; ++j) mean[k] += x[at(i, j)] * x[at(i, j)];
    mean[k] /= static_cast<double>(short_side);
    second[k] = kBeta2 * second[k] + (1 - kBeta2) * mean[k];
    w[k] = 1 / std::sqrt(second[k] < 1e-10 ? 1e-10 : second[k]);
    top += mean[k];
    bottom += mean[k] * w[k] * w[k];
  }
  const auto r = static_cast<double>(short_side);
  const double c = std::sqrt(top * r) / std::max(std::sqrt(bottom * r), 1e-10);
  const double ratio = static_cast<double>(m) / static_cast<double>(n);
  const double rate = ratio > 1 ? kLr * std::sqrt(ratio) : kLr;
  for (int64_t i = 0; i < long_side; ++i) {
    for (int64_t j = 0; j < short_side; ++j) {
      double& value = p[at(i, j)];
      const double scaled = x[at(i, j)] * w[static_cast<size_t>(i)] * c;
      const double mask = scaled * value >= 0 ? 1 : 0;
      value = value - rate * scaled - rate * kDecay * value * mask;
    }
  }
}

TEST(Muon, MomentumLooksAhead) {
  for (Device device : testing::all_devices()) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), to_string(shape)));
      Fixture f(device, shape);
      const std::vector<double> g = f.all("g");
      std::vector<double> momentum = f.all("momentum"), u(g.size());
      for (size_t i = 0; i < g.size(); ++i) {
        momentum[i] = kMomentum * momentum[i] + (1 - kMomentum) * g[i];
        u[i] = (1 - kMomentum) * g[i] + kMomentum * momentum[i];
      }
      f.run->run();
      const double tolerance = device == Device::ref ? 1e-13 : 1e-6;
      expect_close(f.all("momentum"), momentum, tolerance, "M");
      expect_close(f.all(f.run->view(f.u)), u, tolerance, "u");
    }
  }
}

TEST(Muon, UpdateFollowsTheFormulaTallAndWide) {
  for (Device device : testing::all_devices()) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), to_string(shape)));
      Fixture f(device, shape);
      std::vector<double> p = f.all("p"), second = f.all("second");
      expected_update(shape, f.all("x"), p, second);
      f.run->run();
      const double tolerance = device == Device::ref ? 1e-12 : 2e-6;
      expect_close(f.all("p"), p, tolerance, "p");
      expect_close(f.all("second"), second, tolerance, "S");
    }
  }
}

// A matrix gets the bits that it would get alone.
TEST(Muon, MatricesOfACallAreTreatedAlone) {
  constexpr size_t kMatrices{3};
  for (Device device : testing::all_devices()) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), to_string(shape)));
      const auto results = [&](bool together) {
        auto slots = std::make_shared<SlotTable>();
        slots->add({"hyper", {DType::f32, {8}}, SlotRole::scalar});
        Program program("muon", slots);
        Builder b(program, op_table());
        std::array<std::vector<Value>, 5> of;  // g, momentum, x, p, second
        for (size_t i = 0; i < kMatrices; ++i) {
          for (size_t kind = 0; kind < of.size(); ++kind) {
            const std::string name = fmt::format("{}.{}", kind, i);
            slots->add({name,
                        {DType::f32, kind == 4 ? muon_second_moment_shape(shape) : shape},
                        SlotRole::parameter});
            of[kind].push_back(b.slot(name));
          }
        }
        const Value hyper = b.slot("hyper");
        std::vector<Value> u;
        if (together) {
          u = muon_momentum(b, of[0], hyper, of[1]);
          muon_update(b, of[2], hyper, of[3], of[4]);
        } else {
          for (size_t i = 0; i < kMatrices; ++i) {
            u.push_back(muon_momentum(b, {of[0][i]}, hyper, {of[1][i]})[0]);
            muon_update(b, {of[2][i]}, hyper, {of[3][i]}, {of[4][i]});
          }
        }
        program.validate();
        Interpreter run(program, device);
        Rng rng(4, 0);
        for (const Slot& slot : slots->all()) {
          const TensorView t = run.slot(slot.name);
          for (int64_t i = 0; i < t.elems(); ++i) run.set(t, i, std::abs(rng.normal()) / 8);
        }
        run.run();
        std::vector<double> all;
        const auto append = [&](const TensorView& t) {
          for (int64_t i = 0; i < t.elems(); ++i) all.push_back(run.get(t, i));
        };
        for (const Slot& slot : slots->all()) append(run.slot(slot.name));
        for (const Value& v : u) append(run.view(v));
        return all;
      };
      EXPECT_EQ(results(true), results(false));
    }
  }
}

TEST(Muon, TheStepKeepsTheFrobeniusNormTimesTheShapeFactor) {
  for (const Shape& shape : {Shape{64, 16}, Shape{16, 64}}) {
    Fixture f(Device::cpu, shape);
    f.fill("p", [](int64_t) { return 0.0; });
    f.run->run();
    const double factor = shape[0] > shape[1] ? 2.0 : 1.0;  // sqrt(64 / 16)
    EXPECT_NEAR(norm(f.all("p")), kLr * factor * norm(f.all("x")), 1e-6 * norm(f.all("x")));
  }
}

TEST(Muon, DecayIsCautious) {
  Fixture f(Device::cpu, {4, 4});
  f.fill("x", [](int64_t i) { return i % 2 == 0 ? 0.1 : -0.1; });
  f.fill("p", [](int64_t i) { return i % 4 < 2 ? 1.0 : -1.0; });
  f.fill("second", [](int64_t) { return 0.01; });
  f.run->run();  // the variance is the same in every row: the step is lr * x
  const std::vector<double> p = f.all("p");
  EXPECT_NEAR(p[0], 1.0 - kLr * 0.1 - kLr * kDecay, 1e-6);  // step and weight agree: decays
  EXPECT_NEAR(p[1], 1.0 + kLr * 0.1, 1e-6);                 // the step grows it: no decay
  EXPECT_NEAR(p[2], -1.0 - kLr * 0.1, 1e-6);
  EXPECT_NEAR(p[3], -1.0 + kLr * 0.1 + kLr * kDecay, 1e-6);
}

TEST(Muon, ZeroInputOnlyDecays) {
  Fixture f(Device::cpu, {8, 3});
  f.fill("x", [](int64_t) { return 0.0; });
  f.fill("second", [](int64_t) { return 0.0; });
  const std::vector<double> before = f.all("p");
  f.run->run();
  const std::vector<double> after = f.all("p");
  const double rate = kLr * std::sqrt(8.0 / 3.0);
  for (size_t i = 0; i < before.size(); ++i)
    EXPECT_NEAR(after[i], before[i] * (1 - rate * kDecay), 1e-6);
}

TEST(Muon, SameBitsForAnyNumberOfThreads) {
  const int threads_before = thread_count();
  for (const Shape& shape : {Shape{700, 300}, Shape{300, 700}}) {
    std::vector<double> first;
    for (int threads : {1, 2, 5}) {
      set_thread_count(threads);
      Fixture f(Device::cpu, shape);
      f.run->run();
      if (first.empty())
        first = f.all("p");
      else
        EXPECT_EQ(first, f.all("p")) << threads;
    }
  }
  set_thread_count(threads_before);
}

TEST(Muon, RefusesWhatIsNoMatrixOrDoesNotFit) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"v", {DType::f32, {4}}, SlotRole::gradient});
  slots->add({"g", {DType::f32, {4, 3}}, SlotRole::gradient});
  slots->add({"s", {DType::f32, {1, 3}}, SlotRole::optimizer});
  slots->add({"hyper", {DType::f32, {8}}, SlotRole::scalar});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value g = b.slot("g"), v = b.slot("v"), hyper = b.slot("hyper");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { muon_momentum(b, {v}, hyper, {v}); }),
            "muon_momentum: g has shape (4), expected rank 2");
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { muon_momentum(b, {g}, hyper, {v}); }),
            "muon_momentum: M has shape (4), expected (4, 3)");
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape, [&] { muon_update(b, {g}, hyper, {g}, {b.slot("s")}); }),
      "muon_update: S has shape (1, 3), expected (4, 1)");
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] {
                                muon_momentum(b, {g, g}, hyper, {g});
                              }),
            "muon_momentum: 2 matrices and 1 updates, expected 1 to 64 and 1 for each");
}

}  // namespace
}  // namespace tightloop
