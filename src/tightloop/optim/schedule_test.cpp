#include "tightloop/optim/schedule.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

constexpr Recipe kNewer = Recipe::nanochat_2026_07, kOlder = Recipe::nanochat_2026_02;

TEST(Schedule, RoundsHalvesToEven) {
  EXPECT_EQ(round_half_even(0.5), 0);
  EXPECT_EQ(round_half_even(1.5), 2);
  EXPECT_EQ(round_half_even(1102.5), 1102);
  EXPECT_EQ(round_half_even(1103.5), 1104);
  EXPECT_EQ(round_half_even(-0.5), 0);
  EXPECT_EQ(round_half_even(-1.5), -2);
  EXPECT_EQ(round_half_even(2.4999), 2);
  EXPECT_EQ(round_half_even(2.5001), 3);
}

TEST(Schedule, GoldenLearningRateOfTheOlderRecipe) {
  const Schedule s(kOlder, 2205, default_schedule(kOlder));
  EXPECT_EQ(s.warmdown_steps(), 1102);
  EXPECT_EQ(s.lr_multiplier(0), 1.0);
  EXPECT_EQ(s.lr_multiplier(1103), 1.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(1104), 1101.0 / 1102.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(2204), 1.0 / 1102.0);  // not 0 at the last step
}

TEST(Schedule, LearningRateOfTheNewerRecipe) {
  const Schedule s(kNewer, 2520, default_schedule(kNewer));
  EXPECT_EQ(s.warmdown_steps(), 1638);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(0), 1.0 / 40);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(39), 1.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(40), 1.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(882), 1.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(882 + 819), 0.5 + 0.5 * 0.05);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(2520), 0.05);
}

TEST(Schedule, WarmupWinsOverAWarmdownThatReachesIt) {
  const Schedule s(kNewer, 50, {.warmup_steps = 40, .warmdown_ratio = 1.0});
  EXPECT_DOUBLE_EQ(s.lr_multiplier(39), 1.0);
  EXPECT_DOUBLE_EQ(s.lr_multiplier(40), 0.2);
}

TEST(Schedule, ShapesOfTheWarmdown) {
  const auto at = [](WarmdownShape shape, double final_lr_frac, int64_t it) {
    return Schedule(kOlder, 200,
                    {.warmup_steps = 0,
                     .warmdown_ratio = 0.5,
                     .warmdown_shape = shape,
                     .final_lr_frac = final_lr_frac})
        .lr_multiplier(it);
  };
  for (WarmdownShape shape : {WarmdownShape::linear, WarmdownShape::cosine, WarmdownShape::sqrt}) {
    EXPECT_EQ(at(shape, 0.1, 100), 1.0);
    EXPECT_NEAR(at(shape, 0.1, 200), 0.1, 1e-15);
    EXPECT_EQ(parse_warmdown_shape(name_of(shape)), shape);
  }
  EXPECT_NEAR(at(WarmdownShape::linear, 0.2, 125), 0.75 + 0.25 * 0.2, 1e-15);
  EXPECT_NEAR(at(WarmdownShape::cosine, 0.0, 150), 0.5, 1e-15);
  EXPECT_NEAR(at(WarmdownShape::cosine, 0.2, 125), 0.2 + 0.8 * 0.5 * (1 + std::sqrt(0.5)), 1e-15);
  EXPECT_NEAR(at(WarmdownShape::sqrt, 0.0, 125), 0.5, 1e-15);  // 1 - sqrt(1/4)
  EXPECT_NEAR(at(WarmdownShape::sqrt, 0.2, 164), 0.2 + 0.8 * 0.2, 1e-15);
}

TEST(Schedule, MuonMomentum) {
  const Schedule older(kOlder, 2205, default_schedule(kOlder));
  EXPECT_DOUBLE_EQ(older.muon_momentum(0), 0.85);
  EXPECT_DOUBLE_EQ(older.muon_momentum(150), 0.90);
  EXPECT_DOUBLE_EQ(older.muon_momentum(300), 0.95);
  EXPECT_DOUBLE_EQ(older.muon_momentum(2204), 0.95);

  const Schedule newer(kNewer, 2520, default_schedule(kNewer));
  EXPECT_DOUBLE_EQ(newer.muon_momentum(0), 0.85);
  EXPECT_DOUBLE_EQ(newer.muon_momentum(200), 0.91);
  EXPECT_DOUBLE_EQ(newer.muon_momentum(400), 0.97);
  EXPECT_DOUBLE_EQ(newer.muon_momentum(882), 0.97);
  EXPECT_DOUBLE_EQ(newer.muon_momentum(882 + 819), 0.935);
  EXPECT_NEAR(newer.muon_momentum(2519), 0.90 + 0.07 / 1638, 1e-12);

  // A warmdown that starts inside the warm-up of the momentum waits for it.
  const Schedule brief(kNewer, 500, default_schedule(kNewer));
  EXPECT_DOUBLE_EQ(brief.muon_momentum(399), 0.85 + 0.12 * 399 / 400);
  EXPECT_DOUBLE_EQ(brief.muon_momentum(400), 0.97 - 0.07 * (400.0 - 175) / 325);
}

TEST(Schedule, MuonWeightDecay) {
  const Schedule older(kOlder, 100, default_schedule(kOlder));
  EXPECT_DOUBLE_EQ(older.weight_decay_multiplier(0), 1.0);
  EXPECT_DOUBLE_EQ(older.weight_decay_multiplier(25), 0.75);
  const Schedule newer(kNewer, 100, default_schedule(kNewer));
  EXPECT_DOUBLE_EQ(newer.weight_decay_multiplier(0), 1.0);
  EXPECT_DOUBLE_EQ(newer.weight_decay_multiplier(25), 0.5 * (1 + std::sqrt(0.5)));
  EXPECT_DOUBLE_EQ(newer.weight_decay_multiplier(50), 0.5);
}

TEST(Schedule, RefusesImpossibleNumbers) {
  EXPECT_THROW(Schedule(kNewer, 0, {}), Error);
  EXPECT_THROW(Schedule(kNewer, 10, {.warmup_steps = -1}), Error);
  EXPECT_THROW(Schedule(kNewer, 10, {.warmdown_ratio = 1.5}), Error);
  EXPECT_THROW(Schedule(kNewer, 10, {.warmdown_ratio = std::nan("")}), Error);
  EXPECT_THROW(Schedule(kNewer, 10, {.final_lr_frac = -0.1}), Error);
  try {
    parse_warmdown_shape("cosin");
    FAIL() << "no error was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.message(), "unknown warmdown shape 'cosin', expected linear, cosine or sqrt");
    EXPECT_EQ(e.hint(), "`--warmdown-shape cosine`");
  }
}

}  // namespace
}  // namespace tightloop
