#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tightloop {

/// P(T <= t) for Student's t with `df` degrees of freedom (df > 0, need not be whole), to about 14
/// digits, by the incomplete beta function.
double student_t_cdf(double t, double df);
/// The t with P(T <= t) = p, 0 < p < 1.
double student_t_quantile(double p, double df);

struct Sample {
  int64_t n = 0;
  double mean = 0.0;
  double sd = 0.0;  // of the sample (n - 1); 0 for n < 2
};
Sample sample_of(std::span<const double> values);
/// Middle value; mean of the two middle ones for an even count. 0 for none.
double median_of(std::vector<double> values);

/// A t-test. `p` is not-a-number when it cannot be had: too few values, or no spread at all.
struct TTest {
  double difference = 0.0;
  double error = 0.0;  // standard error of the difference
  double df = 0.0;
  double t = 0.0;
  double p = 0.0;
};
/// One-sided: is the mean below `target`?
TTest one_sample_below(std::span<const double> values, double target);
/// Two-sided, variances apart (Welch): mean of b minus mean of a.
TTest welch(std::span<const double> a, std::span<const double> b);
/// One-sided: is the mean of b - a, pair by pair, below 0? Error{usage} for unequal counts.
TTest paired_below(std::span<const double> a, std::span<const double> b);

/// Spread of repeats: groups of runs that differ in nothing but the seed, each about its own mean.
struct Pool {
  double sd = 0.0;
  double df = 0.0;  // sum of (n - 1)
};
Pool pooled(std::span<const std::vector<double>> groups);

/// P(all of n pairs are lower | no difference) = 2^-n.
double sign_probability(int64_t pairs);
/// Seeds for each of two arms to find `effect` with 80 % power, one-sided 5 %:
/// ceil(2 (1.645 + 0.842)^2 sd^2 / effect^2), at least 2.
int64_t seeds_needed(double sd, double effect);
/// Holm's adjustment of the p-values of one family, in the order given; not-a-number counts as 1.
std::vector<double> holm(std::span<const double> p);

}  // namespace tightloop
