#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/error.h"
#include "tightloop/optim/schedule.h"
#include "tightloop/optim/transfer.h"
#include "tightloop/text/tokenizer.h"
#include "tightloop/train/config.h"
#include "tightloop/train/data/pack.h"
#include "tightloop/train/evaluate.h"
#include "tightloop/train/programs.h"
#include "tightloop/train/run_record.h"

namespace tightloop {

/// What begins the message of a run whose plan is larger than the memory: it would be so again.
inline constexpr std::string_view kPlanTooLarge{"the plan needs "};

/// What a run is going to be, known before anything is allocated.
struct TrainPlan {
  NanochatConfig model;
  NanochatSizes sizes;
  Transfer transfer;
  int64_t rows_per_step = 0;
  int64_t micro_steps = 0;
  int64_t eval_batches = 0;
  double eval_tokens = 0;
  double param_data_ratio = 0.0;
  std::vector<ParameterGroup> groups;
  std::vector<MemoryLine> memory;
  int64_t memory_bytes = 0;
  std::string data;          // resolved folder
  DType dtype = DType::f32;  // of products and activations
  int64_t train_tokens = 0;
  Packing packing = Packing::best_fit;  // of the training rows
  std::vector<std::string> notes;       // what was derived differently than asked for
  double startup_ms = 0.0;              // build, differentiate, rewrite and plan
  ScheduleOptions schedule;
  BaseRates rates;            // resolved, before any factor
  double target_ratio = 0.0;  // --target-param-data-ratio, resolved
};

/// The judge of a run: what every arm of an experiment must share.
struct ValidationData {
  std::string data_sha256;  // of the validation shards
  std::string tokenizer_sha256;
  int64_t tokens = 0;           // of one evaluation
  std::optional<double> floor;  // nats: the least loss these tokens allow, when known
};

struct StepReport {
  StepRecord record;
  int64_t steps = 0;
  double smoothed_loss = 0.0;  // debiased EMA, decay 0.9
  double tokens_per_second = 0.0;
  double elapsed_s = 0.0;
  std::optional<double> eta_s;
};

/// Validation on the same tokens every time.
struct EvalReport {
  EvalRecord record;
  Evaluation evaluation;
  int64_t steps = 0;
};

/// Receives what happens; `cli` renders it.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_plan(const TrainPlan&) {}
  virtual void on_start(const std::string& /*run_folder*/, int64_t /*first_step*/) {}
  virtual void on_step(const StepReport&) {}
  virtual void on_eval(const EvalReport&) {}
  virtual void on_sample(int64_t /*step*/, const std::string& /*prompt*/, const std::string&) {}
  virtual void on_checkpoint(const std::string& /*path*/) {}
};

struct TrainResult {
  std::string status = "ok";  // of lab/results.csv: ok, nonfinite, killed
  bool interrupted = false;
  bool reached_target = false;
  int64_t steps_done = 0;
  std::string run_folder;
  std::string last_checkpoint;
  double final_train_loss = 0.0;
  std::optional<EvalReport> last_eval;
  std::optional<double> min_val_bpb;
  double train_seconds = 0.0;      // the train clock
  double counted_seconds = 0.0;    // sum of dt over counted steps
  double tokens_per_second = 0.0;  // median
  double dt_median_ms = 0.0;
  int64_t planned_bytes = 0;
  int64_t peak_bytes = 0;  // arenas and slots, high-water mark
  int64_t peak_resident_bytes = 0;
  std::optional<double> time_to_target_s;
};

/// A training run: text in, run folder out.
class Trainer {
 public:
  /// Resolves the configuration, opens the data and builds every Program.
  /// Errors: usage, data, io, each with a hint.
  Trainer(const TrainConfig& config, const Options& options);
  ~Trainer();

  const TrainPlan& plan() const;
  const TrainPrograms& programs() const;
  /// Reads the validation data once.
  ValidationData validation() const;
  /// Loads the checkpoint named by --resume and saves what was loaded as the checkpoint `folder`:
  /// the same bytes, or the round trip loses something.
  void copy_checkpoint(const std::string& folder);
  /// Trains; `stop` is looked at before every micro-step and every batch of an evaluation: an
  /// unfinished one is given up and taken again when the run is resumed. Error{oom} before anything
  /// is written when the plan is larger than memory. On Error{numeric} the run folder is left as it
  /// is with a summary saying so. These, and what record_failure() names, are a row of results.csv.
  TrainResult run(TrainObserver& observer, const std::atomic<bool>& stop);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The row in results.csv of a run for which no Trainer could be made: oom, io_error or
/// config_error, and the columns that follow from the flags alone. No row for other kinds of error,
/// and a warning in place of one that cannot be written.
void record_failure(const TrainConfig& config, const Error& error);

}  // namespace tightloop
