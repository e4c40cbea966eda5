#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/json.h"
#include "tightloop/lab/crossing.h"
#include "tightloop/train/config.h"
#include "tightloop/train/trainer.h"

namespace tightloop {

/// What all runs of a lab folder are judged by: `lock/target.json`. Runs under different locks are
/// never compared.
struct TargetLock {
  std::string metric = "val_bpb";  // or val_loss; lower is better, no smoothing
  double threshold = 0.0;
  int64_t eval_tokens = 0;
  int64_t max_seq_len = 0;  // of the rows that validation documents are cut into
  std::string data_sha256;  // of the validation shards
  std::string tokenizer_sha256;
  std::optional<double> floor;  // nats: the least val_loss on these tokens, when known

  double metric_sd = 0.0;  // of repeats, at equal step near the crossing
  double metric_sd_df = 0.0;
  double crossing_progress = 1.0;  // of the baseline: step / steps; places the dense evaluations

  std::string method;             // how the threshold came about, in words
  std::vector<std::string> runs;  // baseline run ids it was derived from
  std::string created;

  std::string command;  // as typed; "": the lock came with a preset

  /// SHA-256 of everything but the command, which judges nothing.
  std::string hash() const;
  /// 16 hex digits of what the metric is measured on: values of the metric compare when these are
  /// the same, whatever the threshold.
  std::string eval_hash() const;
};
inline constexpr int64_t kLockFormat = 2;  // 1 had no max_seq_len

OrderedJson to_json(const TargetLock& lock);
/// Error{data}; also for another format than kLockFormat, and when the hash in the text is not that
/// of its content.
TargetLock parse_lock(std::string_view text, const std::string& name);
/// Error{io}, and as parse_lock.
TargetLock load_lock(const std::string& path);
void save_lock(const std::string& path, const TargetLock& lock);

/// Error{usage} that names both values when a run measures its metric on something else than
/// `lock`: rows of another length, other tokens, data or tokenizer. `lab_dir`: where the lock is.
void expect_same_evaluation(const TargetLock& lock,
                            const ValidationData& run,
                            int64_t max_seq_len,
                            const std::string& lab_dir);

/// One baseline run: all that a lock is derived from.
struct BaselineCurve {
  std::string run_id;
  int64_t steps = 0;
  std::vector<MeasuredPoint> points;
};

/// What one baseline says about a threshold.
struct LockCheck {
  std::string run_id;
  double progress = 0.0;     // crossing step / steps; 0: not crossed
  double noise_share = 0.0;  // metric_sd / |slope|, as a share of the time to target
};
struct LockDerivation {
  double threshold = 0.0;
  double offset = 0.0;  // above the median of the baselines' best
  double metric_sd = 0.0, metric_sd_df = 0.0;
  double crossing_progress = 0.0;  // median
  bool quiet = false;              // every noise_share is at most kLockNoise
  std::vector<LockCheck> checks;
};

inline constexpr double kLockOffset = 0.02;                        // where the search starts
inline constexpr double kLockEarliest = 0.70, kLockLatest = 0.97;  // of the steps
inline constexpr double kLockNoise = 0.005;                        // of the time to target

/// Threshold = median over the baselines of their best metric + offset. The offset nearest to
/// kLockOffset is taken for which every baseline crosses between kLockEarliest and kLockLatest of
/// its steps with a noise of at most kLockNoise; where none is so quiet, the quietest one (`quiet`
/// says so). Error{usage} when no offset puts all crossings into that range.
LockDerivation derive_threshold(std::span<const BaselineCurve> baselines);

/// SD over runs of the metric at equal steps, over the evaluations within ± 5 % of the steps around
/// `progress`; the degrees of freedom are those of one evaluation.
std::pair<double, double> metric_spread(std::span<const BaselineCurve> baselines, double progress);

/// The dense evaluations of a run of `steps` steps: every max(1, round(steps / 130)) steps between
/// 0.75 and 1.20 of the baseline's crossing. Fixed before anything runs.
EvalWindow dense_evaluations(int64_t steps, double crossing_progress);

/// A lock that comes with a preset: floor + offset nats, for data with a known floor.
struct ShippedLock {
  std::string_view preset;
  double offset = 0.0;
  double metric_sd = 0.0, metric_sd_df = 0.0;
  double crossing_progress = 0.0;
};
const ShippedLock* shipped_lock(std::string_view preset);

}  // namespace tightloop
