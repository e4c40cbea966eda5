#include "tightloop/lab/crossing.h"

#include <algorithm>
#include <cmath>

#include "tightloop/lab/statistics.h"

namespace tightloop {
namespace {

constexpr int kSustained = 2;  // later evaluations that must agree

/// Monotone cubic through a few points (Fritsch and Carlson 1980), evaluated on one interval.
class MonotoneCubic {
 public:
  MonotoneCubic(std::vector<double> x, std::vector<double> y) : x_(std::move(x)), y_(std::move(y)) {
    const size_t n = x_.size();
    std::vector<double> secant(n - 1);
    for (size_t i = 0; i + 1 < n; ++i) secant[i] = (y_[i + 1] - y_[i]) / (x_[i + 1] - x_[i]);
    tangent_.resize(n);
    tangent_[0] = secant[0];
    tangent_[n - 1] = secant[n - 2];
    for (size_t i = 1; i + 1 < n; ++i)
      tangent_[i] = secant[i - 1] * secant[i] <= 0.0 ? 0.0 : 0.5 * (secant[i - 1] + secant[i]);
    for (size_t i = 0; i + 1 < n; ++i) {
      if (secant[i] == 0.0) {
        tangent_[i] = tangent_[i + 1] = 0.0;
        continue;
      }
      const double a = tangent_[i] / secant[i], b = tangent_[i + 1] / secant[i];
      const double size = std::hypot(a, b);
      if (size > 3.0) {
        tangent_[i] = 3.0 / size * a * secant[i];
        tangent_[i + 1] = 3.0 / size * b * secant[i];
      }
    }
  }

  double at(size_t i, double x) const {
    const double h = x_[i + 1] - x_[i], t = (x - x_[i]) / h;
    return (1 + 2 * t) * (1 - t) * (1 - t) * y_[i] + t * (1 - t) * (1 - t) * h * tangent_[i] +
           t * t * (3 - 2 * t) * y_[i + 1] + t * t * (t - 1) * h * tangent_[i + 1];
  }

 private:
  std::vector<double> x_, y_, tangent_;
};

bool sustained(std::span<const MeasuredPoint> points, size_t i, double limit) {
  const size_t last = std::min(points.size() - 1, i + kSustained);
  for (size_t j = i + 1; j <= last; ++j) {
    if (!(points[j].metric <= limit)) return false;
  }
  return true;
}

}  // namespace

Clocks clocks_at(std::span<const StepRecord> steps, int64_t step) {
  std::vector<double> early;
  for (const StepRecord& r : steps) {
    if (r.counted() && early.size() < 50) early.push_back(1e-9 * static_cast<double>(r.dt_ns));
  }
  const bool none = early.empty();
  const double typical = median_of(early);
  Clocks clocks;
  for (const StepRecord& r : steps) {
    if (r.step >= step) break;
    const double dt = 1e-9 * static_cast<double>(r.dt_ns);
    clocks.train_sec += none || r.counted() ? dt : typical;
    if (none || r.counted()) clocks.nanochat_sec += dt;
  }
  return clocks;
}

Crossing find_crossing(std::span<const MeasuredPoint> points, double threshold, double metric_sd) {
  Crossing crossing;
  if (points.empty()) return crossing;
  crossing.last_sec = points.back().train_sec;
  if (points[0].metric <= threshold) {
    crossing.status = Crossing::Status::too_easy;
    return crossing;
  }
  size_t at = 0;
  for (size_t i = 1; i < points.size() && at == 0; ++i) {
    if (points[i].metric <= threshold && sustained(points, i, threshold + 2.0 * metric_sd)) at = i;
  }
  if (at == 0) return crossing;

  // The finite points around it: `right` is the crossing one, its left neighbour is above.
  std::vector<const MeasuredPoint*> around;
  size_t right = 0;
  for (size_t i = 0; i < points.size() && i <= at + 1; ++i) {
    if (!std::isfinite(points[i].metric)) continue;
    if (!around.empty() && points[i].train_sec <= around.back()->train_sec) continue;
    if (i == at) right = around.size();
    around.push_back(&points[i]);
  }
  if (right == 0) return crossing;  // nothing finite before it: the curve was never seen above
  if (around[right - 1]->metric <= threshold) {
    // Dips that did not last came right before: the curve is taken as crossing where it stays.
    size_t above = right - 1;
    while (above > 0 && around[above]->metric <= threshold) --above;
    if (around[above]->metric <= threshold) return crossing;  // never seen above
    around.erase(around.begin() + static_cast<std::ptrdiff_t>(above) + 1,
                 around.begin() + static_cast<std::ptrdiff_t>(right));
    right = above + 1;
  }
  const size_t from = right >= 2 ? right - 2 : 0;
  std::vector<double> x, y;
  for (size_t i = from; i < around.size() && i <= right + 1; ++i) {
    x.push_back(around[i]->train_sec);
    y.push_back(around[i]->metric);
  }
  const size_t interval = right - 1 - from;
  const MeasuredPoint &a = *around[right - 1], &b = *around[right];
  const MonotoneCubic cubic(x, y);
  double low = a.train_sec, high = b.train_sec;
  for (int i = 0; i < 100; ++i) {
    const double middle = 0.5 * (low + high);
    (cubic.at(interval, middle) > threshold ? low : high) = middle;
  }
  crossing.status = Crossing::Status::crossed;
  crossing.train_sec = 0.5 * (low + high);
  const double width = b.train_sec - a.train_sec;
  const double share = (crossing.train_sec - a.train_sec) / width;
  const auto between = [share](double from_value, double to_value) {
    return from_value + share * (to_value - from_value);
  };
  crossing.steps = between(static_cast<double>(a.step), static_cast<double>(b.step));
  crossing.nanochat_sec = between(a.nanochat_sec, b.nanochat_sec);
  crossing.process_sec = between(a.process_sec, b.process_sec);
  crossing.slope = (b.metric - a.metric) / width;
  crossing.linear_sec = a.train_sec + (threshold - a.metric) / crossing.slope;
  const double interpolation = 0.5 * std::abs(crossing.train_sec - crossing.linear_sec);
  const double half = 1.645 * std::hypot(metric_sd / crossing.slope, interpolation);
  crossing.low_sec = crossing.train_sec - half;
  crossing.high_sec = crossing.train_sec + half;
  return crossing;
}

double end_horizon_sec(double clock_sec, double final_metric, double threshold, double k) {
  return clock_sec * std::exp((final_metric - threshold) / k);
}

}  // namespace tightloop
