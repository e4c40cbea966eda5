#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "tightloop/lab/experiment.h"
#include "tightloop/train/run_record.h"

namespace tightloop {

/// The step at which a run of `steps` steps saves the checkpoint that its resume check starts from:
/// 20 steps before the end, or a quarter of a short run.
int64_t resume_check_step(int64_t steps);

/// How many steps a second start takes: the first loss and one behind an update.
inline constexpr int64_t kStartSteps = 2;

/// In words, how the steps of a run that one process continued at step `from` are not those of
/// `unbroken`, or "": fed with other ids, losses with other bits, a step among the first
/// kUncountedSteps of the process that counts in times, or a later one that does not.
std::string difference_after_resuming(std::span<const StepRecord> unbroken,
                                      std::span<const StepRecord> resumed,
                                      int64_t from);

/// In words, how the first steps of two starts differ in their ids or the bits of their losses, or
/// "".
std::string difference_of_starts(std::span<const StepRecord> a, std::span<const StepRecord> b);

/// What the check of a run needs done.
struct ResumeCheckRuns {
  /// Continues a run folder to its end, in a new process. Whether that went well.
  std::function<bool(const std::string& folder)> train_to_end;
  /// Starts the cell in a new process, which may stop after kStartSteps steps. The run folder,
  /// below `run_dir`, or "" when it did not get there.
  std::function<std::string(const std::string& run_dir)> start_again;
};

/// The checkpoint round trip of a finished run, in a copy of its folder:
///   (a) loading the checkpoint and saving it again gives the same bytes;
///   (b) continued to the end in a new process, the last checkpoint has the same bytes: weights,
///       optimizer, data cursor and the rest of the state;
///   (c) the losses of all steps after it have the same bits;
///   (d) each of these steps was fed with the same ids;
///   (e) the first kUncountedSteps after it do not count in times, and all others do;
/// and a second start: the losses of its first steps have the same bits.
/// Writes resume_check.json into the run folder: "pass" or "fail" and what differed, and the ratio
/// of the median times per counted step, resumed to unbroken, which is not judged: nine steps do
/// not tell one percent. The copies are removed when it passed. Clocks and the record of options
/// are no state.
void check_resume(const std::string& run_folder,
                  const std::string& scratch,
                  const Experiment& experiment,
                  const Arm& arm,
                  const ResumeCheckRuns& runs);

}  // namespace tightloop
