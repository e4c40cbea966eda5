#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tightloop/train/run_record.h"

namespace tightloop {

/// A loss that ends this far above its own minimum has diverged.
inline constexpr double kDivergence = 1.05;

/// Why a run that got to its end has diverged, in words; "" when it has not. It has when the
/// smoothed training loss (debiased EMA, decay 0.9) ends above kDivergence times its minimum and
/// the last validation loss lies above kDivergence times the least one: the order of the data moves
/// the first alone, overfitting the second alone. It also has when the smoothed training loss was
/// above kDivergence times the loss of the first step and ends within 1 % of it or above: a model
/// that blew up often ends with the loss of a guess.
std::string divergence(std::span<const StepRecord> steps, std::span<const double> validation);

/// How often the loss spikes: begins to have at least 3 high steps of the last 10. A step is high
/// when its loss is above the median of the (at most 200) steps before it by more than
/// max(6 * 1.4826 * MAD, 0.3) nats.
int64_t loss_spikes(std::span<const StepRecord> steps);

}  // namespace tightloop
