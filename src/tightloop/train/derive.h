#pragma once

#include <cstdint>
#include <vector>

#include "tightloop/optim/groups.h"
#include "tightloop/optim/schedule.h"
#include "tightloop/optim/transfer.h"
#include "tightloop/train/config.h"

namespace tightloop {

/// Everything that follows from a configuration and the size of the vocabulary, by nanochat's laws.
struct Derived {
  NanochatConfig model;
  NanochatSizes sizes;
  BaseRates rates;                // as given, else the recipe's; before any factor
  double param_data_ratio = 0.0;  // tokens per scaling parameter that the laws assume
  Transfer transfer;
  ScheduleOptions schedule;
  int64_t rows_per_step = 0;      // sequences
  int64_t device_batch_size = 0;  // sequences of a micro-step: as given, at most rows_per_step
  int64_t micro_steps = 0;
  int64_t eval_tokens = 0;  // wanted; the validation set may have fewer
  std::vector<ParameterGroup> groups;
};

/// Error{usage} for values that cannot be, with the nearest valid ones.
Derived derive(const TrainConfig& config, int64_t vocab_size);

}  // namespace tightloop
