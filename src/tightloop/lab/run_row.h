#pragma once

#include <string>
#include <vector>

#include "tightloop/lab/crossing.h"
#include "tightloop/lab/experiment.h"
#include "tightloop/lab/ledger.h"
#include "tightloop/lab/lock.h"

namespace tightloop {

/// How a cell's process ended, kept as outcome.json in a run folder that has no summary.json.
struct Outcome {
  std::string status;  // of results.csv
  std::string detail;  // "signal 11 (Segmentation fault)"
};
/// What it says of a run that was under way when the lab itself ended.
inline constexpr std::string_view kLabEnded = "the lab ended";

/// The evaluations of a run folder with the three clocks. `metric`: val_bpb or val_loss.
std::vector<MeasuredPoint> measured_points(const std::string& run_folder,
                                           const std::string& metric);

/// The ledger's row of a run folder, from the files in it alone: run.json, steps.bin, evals.csv,
/// summary.json, outcome.json and resume_check.json, as far as they are there. `lock` may be null.
LedgerRow row_of_run(const std::string& run_folder,
                     const Experiment& experiment,
                     const Cell& cell,
                     int64_t attempt,
                     const TargetLock* lock);

void write_outcome(const std::string& run_folder, const Outcome& outcome);

/// Whether a run folder holds the end of its run: a summary (but not that of an interrupted one)
/// or an outcome.
bool has_ended(const std::string& run_folder);

}  // namespace tightloop
