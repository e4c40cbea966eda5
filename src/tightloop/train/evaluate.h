#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tightloop/engine/executable.h"
#include "tightloop/text/synthetic.h"
#include "tightloop/train/data/loader.h"

namespace tightloop {

/// Sums of an evaluation. val_bpb = sum of the losses of targets with bytes / (ln 2 * their bytes):
/// special tokens have none and are left out of both sums.
struct Evaluation {
  int64_t tokens = 0;
  double nats = 0.0;       // all targets
  double byte_nats = 0.0;  // targets with bytes
  int64_t bytes = 0;
  bool has_floor = false;
  double floor_nats = 0.0;
  double excess_squares = 0.0;  // of (loss - floor) per token
  std::array<double, kSkillCount> skill_tokens{}, skill_loss{}, skill_floor{};

  double loss() const { return nats / static_cast<double>(tokens); }
  double bits_per_byte() const;
  double floor() const { return floor_nats / static_cast<double>(tokens); }
  /// Standard error of the mean of (loss - floor).
  double excess_error() const;
};

/// Runs `batches` whole batches from the start of the validation data through an evaluation Program
/// bound to `slots`. byte_lengths: bytes of each token, 0 for specials. `batch` is scratch that is
/// kept. Nothing when `stop` was set before the end.
std::optional<Evaluation> evaluate(Executable& program,
                                   const SlotStore& slots,
                                   const DocumentOptions& documents,
                                   int64_t batches,
                                   const std::vector<int32_t>& byte_lengths,
                                   Batch& batch,
                                   const std::atomic<bool>& stop);

struct EvaluateRequest {
  std::string checkpoint;
  std::optional<std::string> data;  // not given: what the run was trained on
  std::optional<int64_t> tokens;    // at most; not given: all
  int64_t batch = 8;
  Device device = Device::cpu;
};
struct EvaluateResult {
  Evaluation evaluation;
  std::string data;
};
/// Error{data} when tokenizer, data and checkpoint do not belong together; Error{interrupted} when
/// `stop` was set before the end.
EvaluateResult evaluate_checkpoint(const EvaluateRequest& request, const std::atomic<bool>& stop);

}  // namespace tightloop
