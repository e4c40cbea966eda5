#pragma once

#include <functional>
#include <string>

#include "tightloop/lab/experiment.h"
#include "tightloop/lab/report/report.h"
#include "tightloop/lab/verdict.h"

namespace tightloop {

/// Everything a report of an experiment shows, from the ledger and the run folders. With
/// `profile_rounds` > 0 every arm's step is profiled here and now for the roofline, in about as
/// many times the arms' step time; `stop` is called between its runs and may throw.
ReportData report_data(const LabFolder& lab,
                       const Experiment& experiment,
                       int profile_rounds,
                       const std::function<void()>& stop);

/// Runs of an arm that ended well, in the order of the ledger.
std::vector<const LedgerRow*> ok_runs(const std::vector<LedgerRow>& rows,
                                      const std::string& experiment,
                                      const std::string& arm);

/// Cells of an arm that ended without a result, with how: "G.both.s2 diverged". They count in the
/// number of runs.
std::vector<std::string> failed_cells(const std::vector<LedgerRow>& rows,
                                      const std::string& experiment,
                                      const std::string& arm);

/// One sentence that names the failed cells of all arms; empty when there are none.
std::string failed_note(const Experiment& experiment, const std::vector<LedgerRow>& rows);

/// One sentence when noise of the metric moves the reference's time to target by more than
/// kLockNoise; otherwise empty.
std::string target_note(const LabFolder& lab,
                        const Experiment& experiment,
                        const std::vector<LedgerRow>& rows,
                        const TargetLock& lock);

/// The table at the end of an experiment: one row an arm, one text a cell.
std::vector<std::vector<std::string>> summary_cells(const Experiment& experiment,
                                                    const std::vector<LedgerRow>& rows,
                                                    const TargetLock& lock,
                                                    const std::vector<ArmVerdict>& verdicts);

std::vector<std::string> arm_names(const Experiment& experiment);

}  // namespace tightloop
