#pragma once

#include <string>

#include "tightloop/cli/app.h"
#include "tightloop/train/config.h"

namespace tightloop::cli {

/// The options of `train`, for every command that builds a training run (train, explain, config
/// show).
struct TrainFlags {
  TrainConfig config;
  Options options;
  ConfigSources sources;
  std::string preset;

  explicit TrainFlags(CLI::App& command);
  TrainFlags(const TrainFlags&) = delete;
  TrainFlags& operator=(const TrainFlags&) = delete;

  /// Values in rising order: defaults, the run that is resumed, preset, files, --set, flags.
  void resolve();
};

}  // namespace tightloop::cli
