#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tightloop/lab/report/report.h"
#include "tightloop/train/trainer.h"

namespace tightloop {

/// An arm to profile: all arms have the same model and batch and differ in rewrites.
struct ProfiledArm {
  std::string name;
  const TrainPrograms* programs = nullptr;
};

struct StepProfile {
  RooflineCeilings ceilings;
  std::vector<RooflinePoint> points;
  std::vector<std::string> notes;  // what makes these figures doubtful
};

/// Times every op of a whole step (all micro-steps and the optimizer) of every arm: one round to
/// warm up, then `rounds` rounds with the arms interleaved, their order reversed in every other
/// round. Seconds are medians over the rounds. Random tokens and parameters, never zeros. The
/// ceilings are the best of before and after. `plan` is that of any arm. `stop`, when given, is
/// called between runs and may throw. Memory: one set of slots and the largest arena. Errors:
/// Error{oom} when that is not free, Error{usage} for rounds < 1.
StepProfile profile_step(const std::vector<ProfiledArm>& arms,
                         const TrainPlan& plan,
                         int rounds,
                         const std::function<void()>& stop = {});

/// What the rewrites of an arm did to a micro-step, in words and numbers.
std::vector<ReportRewrite> rewrites_of(const TrainPrograms& programs);

/// Memory of an arm by purpose, as planned.
ReportMemory memory_of(const std::string& arm, const TrainPlan& plan);

/// CPU, threads, compiler, commit: what a figure of this process was measured on.
std::vector<std::pair<std::string, std::string>> machine_facts(const RooflineCeilings* ceilings);

}  // namespace tightloop
