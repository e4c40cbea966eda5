#include "tightloop/lab/crossing.h"

#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

namespace tightloop {
namespace {

using Status = Crossing::Status;

std::vector<MeasuredPoint> curve(const std::vector<double>& at,
                                 const std::function<double(double)>& f) {
  std::vector<MeasuredPoint> points;
  for (const double t : at)
    points.push_back({.step = static_cast<int64_t>(10 * t),
                      .metric = f(t),
                      .train_sec = t,
                      .nanochat_sec = t - 1.0,
                      .process_sec = 2.0 * t + 3.0});
  return points;
}

std::vector<double> range(double from, double to, double by) {
  std::vector<double> values;
  for (double x = from; x <= to + 1e-9; x += by) values.push_back(x);
  return values;
}

std::vector<MeasuredPoint> values(const std::vector<double>& metric) {
  std::vector<MeasuredPoint> points;
  for (size_t i = 0; i < metric.size(); ++i)
    points.push_back({.step = static_cast<int64_t>(i),
                      .metric = metric[i],
                      .train_sec = static_cast<double>(i),
                      .nanochat_sec = static_cast<double>(i),
                      .process_sec = static_cast<double>(i)});
  return points;
}

TEST(Crossing, AnalyticCurveIsSolvedBetterByTheCubic) {
  const auto f = [](double t) { return 2.0 + 3.0 / std::sqrt(t); };
  const double truth = std::pow(3.0 / (3.0 - 2.0), 2);  // f(9) = 3
  for (const double spacing : {0.7, 1.1, 2.3}) {
    const Crossing c = find_crossing(curve(range(1.0, 20.0, spacing), f), 3.0, 0.0);
    ASSERT_EQ(c.status, Status::crossed);
    EXPECT_LE(std::abs(c.train_sec - truth), std::abs(c.linear_sec - truth) + 1e-12);
    EXPECT_NEAR(c.train_sec, truth, 0.005 * truth);
    EXPECT_NEAR(c.steps, 10.0 * c.train_sec, 1.0);
    EXPECT_NEAR(c.nanochat_sec, c.train_sec - 1.0, 1e-9);
    EXPECT_NEAR(c.process_sec, 2.0 * c.train_sec + 3.0, 1e-9);
  }
}

TEST(Crossing, StraightLineIsExactWithNoInterval) {
  const Crossing c =
      find_crossing(curve(range(0, 10, 1), [](double t) { return 10.0 - t; }), 4.25, 0.0);
  EXPECT_NEAR(c.train_sec, 5.75, 1e-12);
  EXPECT_NEAR(c.low_sec, c.high_sec, 1e-12);
  EXPECT_NEAR(c.slope, -1.0, 1e-12);
}

TEST(Crossing, IntervalIsMetricNoiseOverSlope) {
  const auto line = [](double t) { return 10.0 - 2.0 * t; };
  const Crossing c = find_crossing(curve(range(0, 10, 0.5), line), 4.1, 0.3);
  EXPECT_NEAR(c.high_sec - c.train_sec, 1.645 * 0.3 / 2.0, 1e-9);
  EXPECT_NEAR(c.train_sec - c.low_sec, 1.645 * 0.3 / 2.0, 1e-9);
}

TEST(Crossing, ADipThatDoesNotLastIsNoCrossing) {
  // Below at 2, back above at 3; it stays below from 5 on.
  const std::vector<MeasuredPoint> points = values({9, 7, 4.9, 6, 5.5, 4.5, 4, 3});
  const Crossing c = find_crossing(points, 5.0, 0.1);
  ASSERT_EQ(c.status, Status::crossed);
  EXPECT_GT(c.train_sec, 4.0);
  EXPECT_LT(c.train_sec, 5.0);
  // Noise that is known to be large makes the same dip a crossing.
  EXPECT_LT(find_crossing(points, 5.0, 0.6).train_sec, 2.0);
}

TEST(Crossing, AtTheLastEvaluation) {
  const Crossing c = find_crossing(values({9, 8, 7, 5}), 5.0, 0.0);
  ASSERT_EQ(c.status, Status::crossed);
  EXPECT_NEAR(c.train_sec, 3.0, 1e-9);
}

TEST(Crossing, BetweenTheFirstTwoEvaluations) {
  const Crossing c = find_crossing(values({9, 3, 2, 1}), 5.0, 0.0);
  ASSERT_EQ(c.status, Status::crossed);
  EXPECT_GT(c.train_sec, 0.0);
  EXPECT_LT(c.train_sec, 1.0);
}

TEST(Crossing, NeverReachedIsCensoredAtTheLastClock) {
  const Crossing c = find_crossing(values({9, 8, 7, 6}), 5.0, 0.0);
  EXPECT_EQ(c.status, Status::not_reached);
  EXPECT_EQ(c.last_sec, 3.0);
  EXPECT_EQ(find_crossing({}, 5.0, 0.0).status, Status::not_reached);
}

TEST(Crossing, FirstEvaluationBelowMeansTheTargetIsTooEasy) {
  EXPECT_EQ(find_crossing(values({4, 3, 2}), 5.0, 0.0).status, Status::too_easy);
}

TEST(Crossing, NotANumberNeverCrosses) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(find_crossing(values({9, nan, nan, nan}), 5.0, 0.0).status, Status::not_reached);
  EXPECT_EQ(find_crossing(values({9, 8, 4, nan, nan}), 5.0, 0.0).status, Status::not_reached);
  EXPECT_EQ(find_crossing(values({nan, 4, 3, 2}), 5.0, 0.0).status, Status::not_reached);
  const Crossing c = find_crossing(values({9, 7, nan, 4, 3, 2}), 5.0, 0.0);
  ASSERT_EQ(c.status, Status::crossed);
  EXPECT_GT(c.train_sec, 1.0);
  EXPECT_LT(c.train_sec, 3.0);
}

TEST(Crossing, CubicStaysBetweenItsPoints) {
  // A jump next to a flat stretch: an ordinary cubic would overshoot out of the interval.
  const Crossing c = find_crossing(values({9, 8.9, 1.0, 0.9, 0.9}), 5.0, 0.0);
  EXPECT_GT(c.train_sec, 1.0);
  EXPECT_LT(c.train_sec, 2.0);
}

TEST(Clocks, UncountedStepsCostTheMedianOfTheFirstCounted) {
  std::vector<StepRecord> steps;
  for (int64_t i = 0; i < 20; ++i)
    steps.push_back({.step = i, .dt_ns = i < 11 ? 900'000'000 : 100'000'000, .flags = i < 11});
  EXPECT_NEAR(clocks_at(steps, 20).train_sec, 2.0, 1e-12);
  EXPECT_NEAR(clocks_at(steps, 20).nanochat_sec, 0.9, 1e-12);
  EXPECT_NEAR(clocks_at(steps, 5).train_sec, 0.5, 1e-12);
  // A run too short to have counted steps: all of them count.
  EXPECT_NEAR(clocks_at({steps.data(), 3}, 3).train_sec, 2.7, 1e-12);
}

TEST(Crossing, TheHorizonThatEndsAtTheTarget) {
  EXPECT_EQ(end_horizon_sec(10.0, 1.3, 1.3, 0.2), 10.0);
  EXPECT_NEAR(end_horizon_sec(10.0, 1.1, 1.3, 0.2), 10.0 / std::exp(1.0), 1e-12);
  EXPECT_NEAR(end_horizon_sec(10.0, 1.4, 1.3, 0.2), 10.0 * std::exp(0.5), 1e-12);
}

}  // namespace
}  // namespace tightloop
