#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tightloop/core/json.h"
#include "tightloop/core/options.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {

/// At the start of each process, as nanochat leaves them out: caches and memory are cold.
inline constexpr int64_t kUncountedSteps = 11;

/// One optimizer step, as stored in steps.bin: 64 bytes, little-endian.
struct StepRecord {
  int64_t step = 0;    // from 0
  int64_t tokens = 0;  // seen after this step
  double loss = 0.0;   // mean over the tokens of the step, nats
  float lr_multiplier = 0.0f;
  float weight_decay = 0.0f;  // Muon's, this step
  float momentum = 0.0f;      // Muon's
  float grad_norm = 0.0f;
  int64_t dt_ns = 0;       // the step with its data wait; no evaluation, sampling or saving
  int64_t flags = 0;       // bit 0: not counted in times (the first steps of a process)
  uint64_t data_hash = 0;  // of the ids it was fed; 0 in runs of earlier versions

  bool counted() const { return (flags & 1) == 0; }
};
static_assert(sizeof(StepRecord) == 64);

struct EvalRecord {
  int64_t step = 0;
  int64_t tokens = 0;
  double clock_sec = 0.0;  // the train clock
  double val_bpb = 0.0;
  double val_loss = 0.0;
  std::optional<double> floor;  // nats, of the same tokens
  double process_sec = 0.0;     // host time of this run's processes so far, everything included
};

/// A run folder: run.json, steps.bin, evals.csv, log.txt, summary.json, checkpoints/. Held by one
/// process at a time. Steps are handed to a writer thread: recording one never waits for a disk,
/// and allocates nothing unless more than kWaitingSteps wait.
class RunFolder {
 public:
  /// Creates `<dir>/<date>-<name>-<id>` (id: 6 hex digits). Error{io} with a hint.
  static std::unique_ptr<RunFolder> create(const std::string& dir, const std::string& name);
  /// Opens an existing folder to continue it: steps from `step` on and evaluations after it are
  /// dropped; that at `step` itself stays when it came before the checkpoint (`evaluated`).
  static std::unique_ptr<RunFolder> reopen(const std::string& path, int64_t step, bool evaluated);
  ~RunFolder();

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;

  void write_run_json(const OrderedJson& json) const;
  /// Throws what went wrong with an earlier record: a run whose record has a gap must not go on.
  void add_step(const StepRecord& record);
  void add_eval(const EvalRecord& record);
  void add_log(std::string_view line);
  /// Waits until everything handed over is on disk. Error{io} of the writer comes out here.
  void flush();
  /// Also writes steps.csv. summary.json marks the end of the run.
  void finish(const OrderedJson& summary);

 private:
  static constexpr size_t kWaitingSteps = 1024;

  RunFolder(std::string path, bool existing);
  void work();

  std::string path_, steps_path_, log_path_;
  std::unique_ptr<LockFile> lock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<StepRecord> steps_, writing_steps_;  // waiting, and in the hands of the writer
  std::string lines_, writing_lines_;
  bool busy_ = false;
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread writer_;
};

/// All records of a steps.bin; a cut-short last record is left out. Error{io, data}.
std::vector<StepRecord> read_steps(const std::string& path);

/// The core columns of results.csv, in order.
const std::vector<std::string>& result_columns();

}  // namespace tightloop
