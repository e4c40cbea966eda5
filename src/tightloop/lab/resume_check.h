#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "tightloop/lab/experiment.h"

namespace tightloop {

/// The step at which a run of `steps` steps saves the checkpoint that its resume check starts from:
/// 20 steps before the end, or a quarter of a short run.
int64_t resume_check_step(int64_t steps);

/// The checkpoint round trip of a finished run, in a copy of its folder:
///   (a) loading the checkpoint and saving it again gives the same bytes;
///   (b) continued to the end in a new process, the last checkpoint has the same bytes: weights,
///       optimizer, data cursor and the rest of the state;
///   (c) the losses of all steps after it have the same bits.
/// `train_to_end` continues a run folder with `train --resume` and returns whether that went well.
/// Writes resume_check.json ("pass" or "fail", and what differed) into the run folder; the copy is
/// removed when it passed. Clocks and the record of options are no state.
void check_resume(const std::string& run_folder,
                  const std::string& scratch,
                  const Experiment& experiment,
                  const Arm& arm,
                  const std::function<bool(const std::string& folder)>& train_to_end);

}  // namespace tightloop
