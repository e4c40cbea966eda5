#include "tightloop/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

constexpr double kMomentumStart{0.85};

double mix(double from, double to, double progress) {
  return (1.0 - progress) * from + progress * to;
}

double ratio(int64_t a, int64_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

}  // namespace

double round_half_even(double x) {
  const double below = std::floor(x), rest = x - below;
  if (rest != 0.5) return rest < 0.5 ? below : below + 1.0;
  return std::fmod(below, 2.0) == 0.0 ? below : below + 1.0;
}

std::string_view name_of(WarmdownShape shape) {
  switch (shape) {
    case WarmdownShape::linear:
      return "linear";
    case WarmdownShape::cosine:
      return "cosine";
    case WarmdownShape::sqrt:
      return "sqrt";
  }
  return "?";
}

WarmdownShape parse_warmdown_shape(std::string_view name) {
  std::vector<std::string> names;
  for (WarmdownShape shape : {WarmdownShape::linear, WarmdownShape::cosine, WarmdownShape::sqrt}) {
    if (name == name_of(shape)) return shape;
    names.emplace_back(name_of(shape));
  }
  Error error(ErrorKind::usage,
              fmt::format("unknown warmdown shape '{}', expected linear, cosine or sqrt", name));
  const std::string nearest = nearest_name(name, names);
  if (!nearest.empty()) error.with_hint(fmt::format("`--warmdown-shape {}`", nearest));
  throw error;
}

ScheduleOptions default_schedule(Recipe recipe) {
  if (recipe == Recipe::nanochat_2026_02)
    return {.warmup_steps = 0,
            .warmdown_ratio = 0.5,
            .warmdown_shape = WarmdownShape::linear,
            .final_lr_frac = 0.0};
  return {.warmup_steps = 40,
          .warmdown_ratio = 0.65,
          .warmdown_shape = WarmdownShape::linear,
          .final_lr_frac = 0.05};
}

Schedule::Schedule(Recipe recipe, int64_t steps, const ScheduleOptions& options)
    : recipe_(recipe), steps_(steps), options_(options) {
  if (steps < 1) fail(ErrorKind::usage, "schedule: {} steps, expected at least 1", steps);
  if (options.warmup_steps < 0)
    fail(ErrorKind::usage, "schedule: {} warm-up steps, expected 0 or more", options.warmup_steps);
  if (!(options.warmdown_ratio >= 0.0 && options.warmdown_ratio <= 1.0))
    fail(ErrorKind::usage, "schedule: warmdown ratio {}, expected 0 to 1", options.warmdown_ratio);
  if (!(options.final_lr_frac >= 0.0 && options.final_lr_frac <= 1.0))
    fail(ErrorKind::usage, "schedule: final learning rate fraction {}, expected 0 to 1",
         options.final_lr_frac);
  warmdown_steps_ =
      static_cast<int64_t>(round_half_even(options.warmdown_ratio * static_cast<double>(steps)));
}

double Schedule::lr_multiplier(int64_t it) const {
  if (it < options_.warmup_steps) return ratio(it + 1, options_.warmup_steps);
  if (it <= steps_ - warmdown_steps_) return 1.0;
  const double p = ratio(steps_ - it, warmdown_steps_), f = options_.final_lr_frac;
  switch (options_.warmdown_shape) {
    case WarmdownShape::linear:
      return p + (1.0 - p) * f;
    case WarmdownShape::cosine:
      return f + (1.0 - f) * 0.5 * (1.0 + std::cos(std::numbers::pi * (1.0 - p)));
    case WarmdownShape::sqrt:
      return f + (1.0 - f) * (1.0 - std::sqrt(1.0 - p));
  }
  return 1.0;
}

double Schedule::muon_momentum(int64_t it) const {
  if (recipe_ == Recipe::nanochat_2026_02)
    return mix(kMomentumStart, 0.95, std::min(ratio(it, 300), 1.0));
  if (it < 400) return mix(kMomentumStart, 0.97, ratio(it, 400));
  const int64_t warmdown_start = steps_ - warmdown_steps_;
  if (it >= warmdown_start && warmdown_steps_ > 0)
    return mix(0.97, 0.90, ratio(it - warmdown_start, warmdown_steps_));
  return 0.97;
}

double Schedule::weight_decay_multiplier(int64_t it) const {
  const double progress = ratio(it, steps_);
  if (recipe_ == Recipe::nanochat_2026_02) return 1.0 - progress;
  return 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace tightloop
