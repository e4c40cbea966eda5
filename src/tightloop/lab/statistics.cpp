#include "tightloop/lab/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Continued fraction of the incomplete beta function (Lentz's method), for x < (a + 1)/(a + b +
/// 2).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  double c = 1.0;
  double d = 1.0 - (a + b) * x / (a + 1.0);
  d = 1.0 / (std::abs(d) < kTiny ? kTiny : d);
  double value = d;
  for (int m = 1; m < 1000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double change = 1.0;
    for (const double term : {even, odd}) {
      d = 1.0 + term * d;
      d = 1.0 / (std::abs(d) < kTiny ? kTiny : d);
      c = 1.0 + term / c;
      if (std::abs(c) < kTiny) c = kTiny;
      change = d * c;
      value *= change;
    }
    if (std::abs(change - 1.0) < 1e-16) break;
  }
  return value;
}

/// The regularised incomplete beta function I_x(a, b).
double incomplete_beta(double a, double b, double x) {
  if (x <= 0.0) return 0.0;
  if (x >= 1.0) return 1.0;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1.0) / (a + b + 2.0)) return front * beta_fraction(a, b, x) / a;
  return 1.0 - front * beta_fraction(b, a, 1.0 - x) / b;
}

}  // namespace

double student_t_cdf(double t, double df) {
  if (std::isnan(t) || !(df > 0.0)) return kNan;
  if (std::isinf(t)) return t > 0 ? 1.0 : 0.0;
  if (t * t < df) {  // near the middle the tail would lose digits
    const double half = 0.5 * incomplete_beta(0.5, 0.5 * df, t * t / (df + t * t));
    return t > 0.0 ? 0.5 + half : 0.5 - half;
  }
  const double tail = 0.5 * incomplete_beta(0.5 * df, 0.5, df / (df + t * t));
  return t > 0.0 ? 1.0 - tail : tail;
}

double student_t_quantile(double p, double df) {
  if (!(p > 0.0 && p < 1.0 && df > 0.0)) return kNan;
  double low = -1.0, high = 1.0;
  while (student_t_cdf(low, df) > p && low > -1e15) low *= 2.0;
  while (student_t_cdf(high, df) < p && high < 1e15) high *= 2.0;
  for (int i = 0; i < 200 && high - low > 1e-14 * std::max(1.0, std::abs(low)); ++i) {
    const double middle = 0.5 * (low + high);
    (student_t_cdf(middle, df) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

Sample sample_of(std::span<const double> values) {
  Sample s{.n = static_cast<int64_t>(values.size())};
  if (values.empty()) return s;
  const double n = static_cast<double>(s.n);
  s.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0.0;
  for (const double x : values) squares += (x - s.mean) * (x - s.mean);
  if (s.n > 1) s.sd = std::sqrt(squares / (n - 1.0));
  return s;
}

double median_of(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

namespace {

TTest finish(double difference, double error, double df, bool two_sided) {
  TTest test{.difference = difference, .error = error, .df = df, .t = kNan, .p = kNan};
  if (!(df > 0.0) || !(error > 0.0)) return test;
  test.t = difference / error;
  test.p = two_sided ? 2.0 * student_t_cdf(-std::abs(test.t), df) : student_t_cdf(test.t, df);
  return test;
}

}  // namespace

TTest one_sample_below(std::span<const double> values, double target) {
  const Sample s = sample_of(values);
  const double n = static_cast<double>(s.n);
  return finish(s.mean - target, s.n > 0 ? s.sd / std::sqrt(n) : 0.0, n - 1.0, false);
}

TTest welch(std::span<const double> a, std::span<const double> b) {
  const Sample x = sample_of(a), y = sample_of(b);
  if (x.n < 2 || y.n < 2) return finish(y.mean - x.mean, 0.0, 0.0, true);
  const double nx = static_cast<double>(x.n), ny = static_cast<double>(y.n);
  const double vx = x.sd * x.sd / nx, vy = y.sd * y.sd / ny, v = vx + vy;
  const double df = v > 0.0 ? v * v / (vx * vx / (nx - 1.0) + vy * vy / (ny - 1.0)) : 0.0;
  return finish(y.mean - x.mean, std::sqrt(v), df, true);
}

TTest paired_below(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size())
    fail(ErrorKind::usage, "a paired test of {} and {} values", a.size(), b.size());
  std::vector<double> differences(a.size());
  for (size_t i = 0; i < a.size(); ++i) differences[i] = b[i] - a[i];
  return one_sample_below(differences, 0.0);
}

Pool pooled(std::span<const std::vector<double>> groups) {
  Pool pool;
  double squares = 0.0;
  for (const std::vector<double>& group : groups) {
    if (group.size() < 2) continue;
    const Sample s = sample_of(group);
    const double df = static_cast<double>(s.n - 1);
    squares += df * s.sd * s.sd;
    pool.df += df;
  }
  if (pool.df > 0.0) pool.sd = std::sqrt(squares / pool.df);
  return pool;
}

double sign_probability(int64_t pairs) {
  return std::pow(0.5, static_cast<double>(pairs));
}

int64_t seeds_needed(double sd, double effect) {
  const double ratio = (1.645 + 0.842) * sd / effect;
  const double n = std::ceil(2.0 * ratio * ratio);
  return std::isfinite(n) && n < 1e9 ? std::max<int64_t>(2, static_cast<int64_t>(n))
                                     : std::numeric_limits<int64_t>::max();
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto value = [&](size_t i) { return std::isnan(p[i]) ? 1.0 : p[i]; };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return value(a) < value(b); });
  std::vector<double> adjusted(p.size());
  double largest = 0.0;
  for (size_t k = 0; k < order.size(); ++k) {
    const double scaled = static_cast<double>(order.size() - k) * value(order[k]);
    largest = std::max(largest, std::min(1.0, scaled));
    adjusted[order[k]] = largest;
  }
  return adjusted;
}

}  // namespace tightloop
