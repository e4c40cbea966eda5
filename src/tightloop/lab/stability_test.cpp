#include "tightloop/lab/stability.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace tightloop {
namespace {

std::vector<StepRecord> run_of(const std::vector<double>& losses) {
  std::vector<StepRecord> steps;
  for (size_t i = 0; i < losses.size(); ++i)
    steps.push_back({.step = static_cast<int64_t>(i), .loss = losses[i]});
  return steps;
}

/// Falls from 6 to about 3 and, from `turn` on, rises by `slope` a step.
std::vector<double> curve(int n, int turn, double slope) {
  std::vector<double> losses;
  for (int i = 0; i < n; ++i)
    losses.push_back(3.0 + 3.0 * std::exp(-0.05 * std::min(i, turn)) +
                     slope * std::max(0, i - turn));
  return losses;
}

TEST(Divergence, BothLossesMustEndAboveTheirMinima) {
  const auto falls = run_of(curve(100, 100, 0.0)), rises = run_of(curve(100, 60, 0.1));
  const std::vector<double> good{5.0, 4.0, 3.2}, bad{5.0, 3.3, 6.0};
  EXPECT_EQ(divergence(falls, good), "");
  EXPECT_EQ(divergence(falls, bad), "");   // overfitting
  EXPECT_EQ(divergence(rises, good), "");  // the order of the data
  EXPECT_NE(divergence(rises, bad).find("validation 6.0000 after 3.3000"), std::string::npos);
}

TEST(Divergence, FivePercentAreAllowed) {
  const auto rises = run_of(curve(100, 60, 0.1));
  EXPECT_EQ(divergence(rises, std::vector<double>{5.0, 4.0, 4.19}), "");
  EXPECT_NE(divergence(rises, std::vector<double>{5.0, 4.0, 4.21}), "");
}

TEST(Divergence, ALossThatRisesAndEndsWhereItBegan) {
  EXPECT_EQ(divergence(run_of(curve(100, 60, 0.01)), {}), "");
  EXPECT_NE(divergence(run_of(curve(100, 60, 0.2)), {}), "");
  std::vector<double> blown(100, 6.0);
  EXPECT_EQ(divergence(run_of(blown), {}), "");  // a run too short to learn anything
  for (size_t i = 5; i < 20; ++i) blown[i] = 20.0;
  EXPECT_NE(divergence(run_of(blown), std::vector<double>{6.0, 20.0, 6.0}), "");
  for (size_t i = 50; i < 100; ++i) blown[i] = 3.0;  // it came back
  EXPECT_EQ(divergence(run_of(blown), std::vector<double>{6.0, 20.0, 3.0}), "");
  EXPECT_EQ(divergence({}, {}), "");
}

TEST(LossSpikes, ThreeHighStepsOfTenAreOneSpike) {
  std::vector<double> losses(300, 3.0);
  EXPECT_EQ(loss_spikes(run_of(losses)), 0);
  losses[100] = losses[101] = 9.0;
  EXPECT_EQ(loss_spikes(run_of(losses)), 0);
  losses[105] = 9.0;
  EXPECT_EQ(loss_spikes(run_of(losses)), 1);
  for (size_t i = 200; i < 230; ++i) losses[i] = 3.4;
  EXPECT_EQ(loss_spikes(run_of(losses)), 2);
  for (size_t i = 0; i < losses.size(); ++i) losses[i] = 3.0 + 0.02 * static_cast<double>(i % 7);
  EXPECT_EQ(loss_spikes(run_of(losses)), 0);
}

}  // namespace
}  // namespace tightloop
