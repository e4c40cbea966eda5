#pragma once

#include <cstdint>
#include <string_view>

#include "tightloop/core/recipe.h"

namespace tightloop {

/// How the learning rate falls to its final fraction at the end of a run.
enum class WarmdownShape { linear, cosine, sqrt };

std::string_view name_of(WarmdownShape shape);
/// Error{usage} for an unknown name, with the nearest one.
WarmdownShape parse_warmdown_shape(std::string_view name);

struct ScheduleOptions {
  int64_t warmup_steps = 0;
  double warmdown_ratio = 0.0;  // share of all steps
  WarmdownShape warmdown_shape = WarmdownShape::linear;
  double final_lr_frac = 0.0;
};

/// 2026-07: 40 steps, 0.65, linear, 0.05. 2026-02: 0, 0.5, linear, 0.
ScheduleOptions default_schedule(Recipe recipe);

/// Everything that varies with the step, as multipliers or values. Steps count from 0.
class Schedule {
 public:
  /// Error{usage}: steps < 1, a negative warm-up, or a ratio or fraction outside 0..1.
  Schedule(Recipe recipe, int64_t steps, const ScheduleOptions& options);

  int64_t steps() const { return steps_; }
  int64_t warmup_steps() const { return options_.warmup_steps; }
  /// round(warmdown_ratio * steps), halves to even.
  int64_t warmdown_steps() const { return warmdown_steps_; }
  const ScheduleOptions& options() const { return options_; }

  /// Multiplier of every learning rate: (it+1)/warmup in the warm-up, 1 until steps - warmdown,
  /// then with p = (steps-it)/warmdown and f the final fraction
  ///   linear  p + (1-p) f
  ///   cosine  f + (1-f) (1 + cos(pi (1-p))) / 2
  ///   sqrt    f + (1-f) (1 - sqrt(1-p))
  double lr_multiplier(int64_t it) const;
  /// Muon's momentum. 2026-02: 0.85 to 0.95 over 300 steps. 2026-07: 0.85 to 0.97 over 400 steps,
  /// and from the start of the warmdown (if later) down to 0.90.
  double muon_momentum(int64_t it) const;
  /// Multiplier of Muon's weight decay. 2026-02: 1 - it/N. 2026-07: (1 + cos(pi it/N)) / 2.
  double weight_decay_multiplier(int64_t it) const;

 private:
  Recipe recipe_;
  int64_t steps_;
  ScheduleOptions options_;
  int64_t warmdown_steps_;
};

/// To the nearest integer, halves to the even one, whatever the rounding mode.
double round_half_even(double x);

}  // namespace tightloop
