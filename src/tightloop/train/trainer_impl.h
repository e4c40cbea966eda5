#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tightloop/core/json.h"
#include "tightloop/io/host_info.h"
#include "tightloop/train/data/loader.h"
#include "tightloop/train/gemm_cache.h"
#include "tightloop/train/step_values.h"
#include "tightloop/train/trainer.h"

/// The inside of a Trainer, for its own files: trainer.cpp (the loop), trainer_plan.cpp (what the
/// run will be), trainer_step.cpp, trainer_state.cpp (checkpoints), trainer_record.cpp (what is
/// written about it).
namespace tightloop {

inline const std::chrono::steady_clock::time_point kProcessStart = std::chrono::steady_clock::now();
inline constexpr double kLossDecay = 0.9;

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// 0 for none.
double median(std::vector<double> values);

/// The slots that a step reads and writes from outside its Programs.
struct StepSlots {
  SlotId tokens, targets, loss, loss_scale, grad_sum_squares;
  std::vector<SlotId> hypers;  // one a parameter group
};

/// What a training step must not make, so far.
struct Made {
  int64_t plans = 0, binds = 0;
  int64_t blocks = 0;                  // of memory
  int64_t captures = 0, breaks = 0;    // of CUDA graphs
  int64_t allocations = 0, syncs = 0;  // on cuda

  static Made now();
  void add(const Made& from, const Made& to);
};

struct Trainer::Impl {
  TrainConfig config;
  OrderedJson resolved_options;
  TrainPlan plan;
  std::optional<Tokenizer> tokenizer;
  DocumentOptions train_documents, val_documents;
  std::unique_ptr<Schedule> schedule;
  std::unique_ptr<TrainPrograms> programs;
  std::vector<int32_t> byte_lengths;
  std::string resume_checkpoint;  // empty: a new run
  std::string changes_at_resume;  // options that differ from the checkpoint's, for log.txt
  std::string started = utc_timestamp();

  // Memory and what is bound to it: made in run().
  std::unique_ptr<SlotStore> slots;
  std::unique_ptr<Workspace> workspace;
  StepSlots step_slots;
  std::unique_ptr<Executable> first, next, evaluation, optimizer;
  std::unique_ptr<RunFolder> folder;

  // Loop state.
  int64_t first_step = 0;
  int64_t process_steps = 0;
  double earlier_processes_s = 0.0;  // host time of the processes that this one continues
  double startup_s = 0.0;            // process start to the first step
  Made made_in_steps;          // from asking for a batch to handing over the record; counted steps
  int64_t bound_at_start = 0;  // Programs bound before the first step
  double bind_ms = 0.0;
  double allocate_ms = 0.0, weights_ms = 0.0;  // the latter: initialised or loaded
  double loss_ema = 0.0;
  std::optional<double> min_val_bpb;
  std::vector<StepRecord> history;
  std::optional<double> time_to_target;
  double previous_metric = 0.0, previous_clock = 0.0;  // of the evaluation before, in this process
  DataCursor cursor;
  bool evaluation_pending = false;  // at first_step: its evaluation was interrupted
  TrainResult result;
  Batch val_batch;
  std::unique_ptr<StepValues> step_values;
  std::optional<GemmCache> gemm_cache;  // on cuda

  // trainer_plan.cpp
  Impl(const TrainConfig& c, const Options& options);
  void open_data();
  /// Everything that follows from --depth and the flags.
  void resolve();
  void build();
  TrainPrograms build_programs(const NanochatConfig& model,
                               int64_t micro_batch,
                               const std::vector<ParameterGroup>& groups) const;
  /// What the plan would need with another micro-batch and depth.
  int64_t planned_bytes(int64_t micro_batch, int64_t depth) const;
  void check_memory() const;
  /// The plan by purpose, and what would fit `available` bytes.
  [[noreturn]] void fail_memory(const std::string& limit, int64_t available) const;
  void allocate();
  ValidationData validation() const;

  // trainer_state.cpp
  OrderedJson state_json(int64_t step) const;
  /// What bits depend on besides the flags.
  std::string kernels() const;
  /// Error{usage} where a resumed run would not be the one it was; notes what else differs.
  void expect_same_run();
  void restore();
  void initialise();
  /// A checkpoint that cannot be trained from must not look like the last good one.
  void expect_finite_state(int64_t step) const;
  std::string recovery_hint() const;
  std::string save(int64_t step, TrainObserver& observer);
  void copy_checkpoint(const std::string& to);

  // trainer_step.cpp
  /// Counted steps' time, and for each uncounted one the median of the first 50 counted.
  double train_clock() const;
  /// With the micro-step that can still be repeated, if there is one.
  [[noreturn]] void fail_non_finite(int64_t step, Executable* micro, double loss);
  /// Whether the values of a step are looked at before it ends. Else, on cuda, nothing in a step
  /// waits, and a loss that is not finite is seen one step later.
  bool looks_within_steps() const;
  /// Enqueues the step; its record still lacks its values. Nothing when `stop` was set on the way:
  /// parameters, optimizer and cursor are then those of the step before, and the step can be taken
  /// again. From the third step of a process on it allocates nothing, on no thread; but the
  /// loader's list of documents may grow when the turn of another shard comes.
  std::optional<StepRecord> train_step(int64_t step,
                                       BatchLoader& loader,
                                       const std::atomic<bool>& stop);
  /// The whole record of the oldest step in flight; waits for it. Error{numeric}.
  StepRecord finish_step(const StepRecord& enqueued);
  std::optional<EvalReport> evaluate_now(int64_t step, const std::atomic<bool>& stop);
  /// Text from the present weights. Prompt: the beginning of a document.
  std::string sample_text();

  // trainer_record.cpp
  OrderedJson run_json() const;
  double process_seconds() const;
  void fill_result();
  double smoothed(int64_t steps) const;
  OrderedJson summary_json() const;
  void append_result_row() const;
  /// The row of a run that ends with this error, unless it has one.
  void record_failure(const Error& error);
  void close(std::string status);

  // trainer.cpp
  TrainResult run(TrainObserver& observer, const std::atomic<bool>& stop);
  bool evaluation_due(int64_t step) const;
  bool due(int64_t every, int64_t step) const;
  void loop(TrainObserver& observer, const std::atomic<bool>& stop);
  void record_evaluation(const EvalReport& report, TrainObserver& observer);
};

}  // namespace tightloop
