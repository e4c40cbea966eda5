#pragma once

#include <cstdint>
#include <vector>

#include "tightloop/train/programs.h"

namespace tightloop {

/// Fills the slots of a run with what a timing or a test needs: random tokens and targets,
/// parameters as initialised (normal with deviation 0.02 where that would be zero: zeros can be
/// faster than numbers), the rates of the middle of a long run, a loss averaged over `step_tokens`.
void fill_for_timing(const TrainPrograms& programs,
                     const NanochatConfig& model,
                     const std::vector<ParameterGroup>& groups,
                     int64_t step_tokens,
                     uint64_t seed,
                     SlotStore& slots);

}  // namespace tightloop
