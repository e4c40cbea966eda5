#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tightloop/core/json.h"
#include "tightloop/engine/memory.h"
#include "tightloop/model/nanochat.h"

namespace tightloop {

/// A checkpoint is a folder `step_000123`: model.safetensors (nanochat's names),
/// optimizer.safetensors, config.json (the model), state.json (step, data cursor, loop state),
/// tokenizer.json, checksums.json (of the tensor files), and COMPLETE, written last. It is made
/// under a temporary name and renamed, so one that can be found is whole.
struct CheckpointFiles {
  static constexpr std::string_view kModel = "model.safetensors";
  static constexpr std::string_view kOptimizer = "optimizer.safetensors";
  static constexpr std::string_view kConfig = "config.json";
  static constexpr std::string_view kState = "state.json";
  static constexpr std::string_view kTokenizer = "tokenizer.json";
  static constexpr std::string_view kSums = "checksums.json";
};

/// "step_000123".
std::string checkpoint_name(int64_t step);

/// Writes parameters and optimizer slots of `slots` with the given documents.
/// Error{io}: nothing that was there is lost.
void save_checkpoint(const std::string& folder,
                     const SlotStore& slots,
                     const NanochatConfig& config,
                     const OrderedJson& state,
                     const std::string& tokenizer_json);

/// Complete checkpoints in `folder`, oldest first.
std::vector<std::string> list_checkpoints(const std::string& folder);
/// Removes all but the newest `keep`.
void prune_checkpoints(const std::string& folder, int64_t keep);

/// The checkpoint that a path means: itself, or the newest complete one of a run folder.
/// Error{io} with a hint when there is none.
std::string find_checkpoint(const std::string& path);

/// A tensor file must hold the bytes that were written: Error{data}.
void check_checkpoint_sum(const std::string& checkpoint, std::string_view file);

/// Reads the slots back; every parameter and optimizer slot must be there with its type.
/// Error{data} naming file and tensor.
void load_checkpoint_slots(const std::string& checkpoint,
                           const SlotStore& slots,
                           bool with_optimizer);
Json load_checkpoint_state(const std::string& checkpoint);
NanochatConfig load_checkpoint_config(const std::string& checkpoint);

}  // namespace tightloop
