#include "tightloop/lab/statistics.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

TEST(Statistics, StudentMatchesTables) {
  // Published one-sided 95 % and 97.5 % points.
  EXPECT_NEAR(student_t_quantile(0.95, 1), 6.313751515, 1e-8);
  EXPECT_NEAR(student_t_quantile(0.95, 2), 2.919985580, 1e-8);
  EXPECT_NEAR(student_t_quantile(0.975, 7), 2.364624252, 1e-8);
  EXPECT_NEAR(student_t_quantile(0.975, 1e6), 1.959966, 1e-5);
  EXPECT_NEAR(student_t_quantile(0.01, 4), -3.746947388, 1e-8);
}

TEST(Statistics, StudentHasClosedFormsForOneAndTwoDegrees) {
  for (const double t : {-30.0, -2.0, -0.1, 0.0, 0.7, 5.0, 400.0}) {
    EXPECT_NEAR(student_t_cdf(t, 1), 0.5 + std::atan(t) / std::acos(-1.0), 1e-13) << t;
    EXPECT_NEAR(student_t_cdf(t, 2), 0.5 + t / (2.0 * std::sqrt(2.0 + t * t)), 1e-13) << t;
  }
  for (const double p : {1e-6, 0.3, 0.5, 0.999}) {
    EXPECT_NEAR(student_t_cdf(student_t_quantile(p, 3.7), 3.7), p, 1e-10);
  }
  EXPECT_TRUE(std::isnan(student_t_cdf(1.0, 0.0)));
}

TEST(Statistics, TestsMatchAWorkedExample) {
  const std::vector<double> a{89.8030, 89.7110, 89.8350, 89.8490};
  const std::vector<double> b{88.8210, 88.8090, 88.8060, 88.9000};
  const TTest w = welch(a, b);
  EXPECT_NEAR(w.difference, -0.9655, 1e-9);
  EXPECT_NEAR(w.t, -25.2907, 1e-4);
  EXPECT_LT(w.p, 1e-6);
  const TTest paired = paired_below(a, b);
  EXPECT_NEAR(paired.difference, w.difference, 1e-12);
  EXPECT_EQ(paired.df, 3.0);
  EXPECT_LT(paired.p, 0.001);
  EXPECT_THROW(paired_below(a, std::vector<double>{1.0}), Error);
}

TEST(Statistics, TooFewValuesGiveNoP) {
  EXPECT_TRUE(std::isnan(one_sample_below(std::vector<double>{3.0}, 4.0).p));
  EXPECT_TRUE(std::isnan(one_sample_below(std::vector<double>{}, 4.0).p));
  EXPECT_TRUE(std::isnan(welch(std::vector<double>{1, 2}, std::vector<double>{3}).p));
  EXPECT_TRUE(std::isnan(one_sample_below(std::vector<double>{3.0, 3.0}, 4.0).p));
}

TEST(Statistics, PoolWeighsByDegreesOfFreedom) {
  const std::vector<std::vector<double>> groups{{1, 3}, {10, 10, 10}, {7}};
  const Pool pool = pooled(groups);
  EXPECT_EQ(pool.df, 3.0);
  EXPECT_NEAR(pool.sd, std::sqrt(2.0 / 3.0), 1e-12);
}

TEST(Statistics, SeedsAndSigns) {
  EXPECT_EQ(sign_probability(2), 0.25);
  EXPECT_EQ(seeds_needed(0.004, 0.004 * 2.487), 2);
  EXPECT_EQ(seeds_needed(0.01, 0.01), 13);
  EXPECT_EQ(seeds_needed(1.0, 0.0), std::numeric_limits<int64_t>::max());
}

TEST(Statistics, HolmStepsDown) {
  const std::vector<double> adjusted = holm(std::vector<double>{0.04, 0.01, 0.03});
  EXPECT_NEAR(adjusted[1], 0.03, 1e-12);
  EXPECT_NEAR(adjusted[2], 0.06, 1e-12);
  EXPECT_NEAR(adjusted[0], 0.06, 1e-12);
}

}  // namespace
}  // namespace tightloop
