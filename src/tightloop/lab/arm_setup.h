#pragma once

#include <memory>
#include <string>

#include "tightloop/lab/experiment.h"
#include "tightloop/train/trainer.h"

namespace tightloop {

/// A training run of an arm, built in this process but not begun.
struct ArmSetup {
  TrainConfig config;
  Options options;
  std::unique_ptr<Trainer> trainer;
};
/// `resume`: a checkpoint, or empty.
std::unique_ptr<ArmSetup> set_up(const Experiment& experiment,
                                 const Arm& arm,
                                 const std::string& resume = "");

}  // namespace tightloop
