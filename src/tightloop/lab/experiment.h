#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tightloop/core/json.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/ledger.h"
#include "tightloop/lab/lock.h"
#include "tightloop/train/config.h"

namespace tightloop {

/// Flag and value, as `train` takes them.
using FlagValues = std::vector<std::pair<std::string, std::string>>;

/// One variant under test. Every rewrite is said, on or off.
struct Arm {
  std::string name;
  FlagValues rewrites;

  /// "--fused-rmsnorm --no-chunked-ce"
  std::string flags() const;
};

/// One training run of an experiment.
struct Cell {
  std::string name;  // "G.both.s2": also the name of its run folder
  std::string arm;
  int64_t seed = 0;
  int64_t block = 0;  // cells of one block ran one after another
};

/// What is run: written to experiments/<name>.json before the first cell and never changed.
struct Experiment {
  std::string name;       // of the template, or of the lock's baselines
  std::vector<Arm> arms;  // the first is the reference
  std::vector<int64_t> seeds;
  FlagValues base;    // of every cell
  EvalWindow window;  // dense evaluations
  int64_t steps = 0;
  std::string lock_hash;  // "" for baselines that a lock is to be derived from
  std::string build_hash;
  bool verify_resume = false;
  double silence_s = 600.0;  // a cell without a sign of life for so long has hung
  double peak_gflops = 0.0;  // multiply-adds, measured here before the first cell: 1 of mfu_median
  std::string command;       // as typed

  /// Seed by seed; the order of the arms is reversed at every other seed.
  std::vector<Cell> cells() const;
  const Arm& arm(const std::string& arm_name) const;
  /// Of everything that fixes the bits of an arm's runs but the seed.
  std::string config_hash(const Arm& arm) const;
  bool operator==(const Experiment& other) const;
};

inline constexpr int64_t kExperimentFormat = 2;  // 1 had no peak_gflops
/// An experiments/<name>.json. Error{data}.
Experiment parse_experiment(std::string_view text, const std::string& name);

/// "G": the unfused reference, --fused-rmsnorm, --chunked-ce, both. "AA": the reference against
/// itself. "lock": the reference alone. Rewrites that the template does not name are off, or as
/// `base` has them. Error{usage} for another name.
std::vector<Arm> template_arms(const std::string& name,
                               const TrainConfig& base,
                               const Options& options);
/// What `options` set, without what the lab decides (run, seeds, target, evaluation window and
/// rewrites). Paths become absolute. Notes say what a file gave and is not used; a flag that would
/// not be used is Error{usage}, and so are --resume and the rewrites of template G.
FlagValues base_flags(const Options& options,
                      const std::string& template_name,
                      std::vector<std::string>& notes);

/// The options of `train` that base_flags() refuses as flags, without dashes.
std::vector<std::string> lab_decided_options(const std::string& template_name);

/// A few words on this binary, hashed: runs of different builds are not one experiment.
std::string build_hash();

/// Error{usage} unless `path` is a folder that the lab has made.
void expect_lab(const std::string& path);

/// A lab folder: lock/target.json, experiments/, runs/, logs/, decisions/, ledger.sqlite,
/// results.csv.
class LabFolder {
 public:
  /// With `exclusive` it is held for this process, and what is missing is made; Error{io} naming
  /// the holder. Else it must be a lab, and nothing is made but the ledger from its own CSV.
  LabFolder(std::string path, bool exclusive);

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;
  Ledger& ledger() { return *ledger_; }
  const Ledger& ledger() const { return *ledger_; }

  bool has_lock() const;
  TargetLock lock() const;
  /// Error{usage} when another one is there already.
  void set_lock(const TargetLock& lock) const;

  std::vector<std::string> experiment_names() const;
  /// Error{usage} when it was planned under another target than the folder's.
  Experiment experiment(const std::string& name) const;
  void save_experiment(const Experiment& experiment) const;

  /// Run folders of a cell, oldest first.
  std::vector<std::string> runs_of(const Cell& cell) const;

 private:
  std::string path_;
  std::unique_ptr<LockFile> held_;
  std::unique_ptr<Ledger> ledger_;
};

/// Where a cell stands, from the ledger and the run folders alone.
struct CellState {
  enum class Kind { done, broken, interrupted, pending };
  Kind kind = Kind::pending;
  std::optional<LedgerRow> row;  // the last one
  int64_t attempts = 0;          // not counting those where the lab itself ended
  int64_t failures = 0;          // of the attempts, not counting what the disk did (io_error)
  std::string run_folder;        // interrupted: what `train --resume` continues
};
CellState cell_state(const LabFolder& lab, const Cell& cell);

class LabObserver {
 public:
  virtual ~LabObserver() = default;
  virtual void on_cell(const Cell& /*cell*/,
                       int64_t /*index*/,
                       int64_t /*cells*/,
                       bool /*resumed*/) {}
  virtual void on_step(const Cell& /*cell*/, int64_t /*step*/, int64_t /*steps*/, double /*loss*/) {
  }
  virtual void on_row(const Cell& /*cell*/, const LedgerRow& /*row*/) {}
};

struct RunCellsResult {
  bool interrupted = false;
  int64_t broken = 0;  // cells that failed twice, or in a way that a repeat cannot change
};

/// Runs what is not finished: a finished cell is skipped, an interrupted one continues from its
/// last checkpoint, one that failed is repeated once with the same seed. A cell's failure is a row
/// with a status, not an error; only when files could not be written or read in the repeat either,
/// which other cells would meet too, it is Error{io}. `program` trains: this binary.
RunCellsResult run_cells(LabFolder& lab,
                         const Experiment& experiment,
                         const std::string& program,
                         LabObserver& observer,
                         const std::atomic<bool>& stop);

/// What `train` is told for a cell whose run folder is to be below `run_dir`.
std::vector<std::string> cell_arguments(const std::string& run_dir,
                                        const Experiment& experiment,
                                        const Cell& cell);

}  // namespace tightloop
