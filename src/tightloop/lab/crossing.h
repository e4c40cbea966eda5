#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tightloop/train/run_record.h"

namespace tightloop {

/// One evaluation of a run with the three clocks at its step.
struct MeasuredPoint {
  int64_t step = 0;
  double metric = 0.0;
  double train_sec = 0.0;  // counted steps, and the median of the first 50 for each uncounted one
  double nanochat_sec = 0.0;  // counted steps only
  double process_sec = 0.0;   // host time since the process started, everything included
};

/// The clocks after `step` steps. Without any counted step, all steps count.
struct Clocks {
  double train_sec = 0.0;
  double nanochat_sec = 0.0;
};
Clocks clocks_at(std::span<const StepRecord> steps, int64_t step);

/// Where a curve that should fall meets the target.
struct Crossing {
  enum class Status { crossed, not_reached, too_easy };
  Status status = Status::not_reached;

  // When crossed.
  double steps = 0.0;       // with a fraction
  double train_sec = 0.0;   // by the monotone cubic
  double linear_sec = 0.0;  // by the straight line, on the same clock
  double nanochat_sec = 0.0;
  double process_sec = 0.0;
  double slope = 0.0;    // of the metric a second of the train clock, where it crosses
  double low_sec = 0.0;  // 90 % interval on the train clock
  double high_sec = 0.0;

  double last_sec = 0.0;  // train clock of the last evaluation: where a censored run ends
};

/// The first evaluation at or below `threshold` (not the very first one) such that none of the next
/// two is above threshold + 2 metric_sd. A monotone cubic (Fritsch and Carlson) through the two
/// points before and the two from it on gives the time by bisection; half of the distance to the
/// straight line is the interpolation error e, and the interval is
/// ± 1.645 sqrt((metric_sd / slope)² + e²). Points that are not finite never cross, and break a
/// crossing that they follow. too_easy: the first evaluation is below the target already.
Crossing find_crossing(std::span<const MeasuredPoint> points, double threshold, double metric_sd);

/// How much lower the loss ends for a horizon e times as long: the median of seven public pairs of
/// runs of 1.4k to 3.4k steps (0.138 to 0.303 nats). A prior, not measured on the recipe at hand.
inline constexpr double kHorizonNats = 0.184;
/// The train clock of a run whose schedule ends just at the threshold:
/// clock exp((final_metric - threshold) / k), k in units of the metric per e-fold of the horizon.
double end_horizon_sec(double clock_sec, double final_metric, double threshold, double k);

}  // namespace tightloop
