#include "tightloop/lab/stability.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tightloop/core/error.h"
#include "tightloop/lab/statistics.h"

namespace tightloop {
namespace {

constexpr double kLossDecay = 0.9;
constexpr double kNothingLearned = 0.99;
constexpr size_t kSpikeMedian = 200, kSpikeWindow = 10;
constexpr int64_t kSpikeSteps = 3;
constexpr double kSpikeDeviations = 6.0 * 1.4826, kSpikeLeast = 0.3;

}  // namespace

std::string divergence(std::span<const StepRecord> steps, std::span<const double> validation) {
  if (steps.empty()) return "";
  double ema = 0.0, weight = 0.0, smoothed = 0.0;
  const double start = steps[0].loss;
  double least = start, most = start;
  for (const StepRecord& r : steps) {
    ema = kLossDecay * ema + (1.0 - kLossDecay) * r.loss;
    weight = kLossDecay * weight + (1.0 - kLossDecay);
    smoothed = ema / weight;
    least = std::min(least, smoothed);
    most = std::max(most, smoothed);
  }
  if (most > kDivergence * start && smoothed > kNothingLearned * start)
    return fmt::format("the training loss rose from {:.4f} to {:.4f} and ended at {:.4f}", start,
                       most, smoothed);
  if (validation.size() < 2) return "";
  const double best = *std::min_element(validation.begin(), validation.end());
  if (smoothed <= kDivergence * least || validation.back() <= kDivergence * best) return "";
  return fmt::format(
      "the losses ended more than {:.0f} % above their minima: training {:.4f} after {:.4f}, "
      "validation {:.4f} after {:.4f}",
      100.0 * (kDivergence - 1.0), smoothed, least, validation.back(), best);
}

int64_t loss_spikes(std::span<const StepRecord> steps) {
  std::vector<bool> high(steps.size(), false);
  std::vector<double> before, off;
  int64_t spikes = 0, in_window = 0;
  bool spiking = false;
  for (size_t i = 1; i < steps.size(); ++i) {
    before.clear();
    for (size_t k = i - std::min(i, kSpikeMedian); k < i; ++k) before.push_back(steps[k].loss);
    const double median = median_of(before);
    off.clear();
    for (const double x : before) off.push_back(std::abs(x - median));
    high[i] = steps[i].loss > median + std::max(kSpikeDeviations * median_of(off), kSpikeLeast);
    in_window += high[i] ? 1 : 0;
    if (i >= kSpikeWindow && high[i - kSpikeWindow]) --in_window;
    if (in_window >= kSpikeSteps && !spiking) ++spikes;
    spiking = in_window >= kSpikeSteps;
  }
  return spikes;
}

}  // namespace tightloop
