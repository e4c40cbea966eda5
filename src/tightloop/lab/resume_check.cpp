#include "tightloop/lab/resume_check.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/arm_setup.h"
#include "tightloop/lab/statistics.h"
#include "tightloop/train/checkpoint.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::string in(const std::string& folder, std::string_view name) {
  return (fs::path(folder) / name).string();
}

/// state.json without what may differ: the host's clock and how the options were given.
std::string state_of(const std::string& checkpoint) {
  Json state = load_checkpoint_state(checkpoint);
  for (const char* key : {"process_sec", "options", "data_path"}) state.erase(key);
  return state.dump();
}

/// What differs between two checkpoints, or "".
std::string difference(const std::string& a, const std::string& b) {
  for (const std::string_view name : {CheckpointFiles::kModel, CheckpointFiles::kOptimizer,
                                      CheckpointFiles::kConfig, CheckpointFiles::kTokenizer}) {
    const MappedFile x(in(a, name)), y(in(b, name));
    if (x.text() != y.text()) return std::string(name);
  }
  return state_of(a) == state_of(b) ? "" : std::string(CheckpointFiles::kState);
}

bool same_bits(double a, double b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

/// Of the counted steps from `from` on; 0 when there is none.
double median_dt(std::span<const StepRecord> steps, int64_t from) {
  std::vector<double> dts;
  for (const StepRecord& r : steps) {
    if (r.step >= from && r.counted()) dts.push_back(static_cast<double>(r.dt_ns));
  }
  return dts.empty() ? 0.0 : median_of(dts);
}

struct Verified {
  std::string detail;     // what is wrong, or ""
  double dt_ratio = 0.0;  // or 0
};

Verified verify(const std::string& run,
                const std::string& scratch,
                const Experiment& experiment,
                const Arm& arm,
                const ResumeCheckRuns& runs) {
  const int64_t from = resume_check_step(experiment.steps);
  const std::string middle = checkpoint_name(from), last = checkpoint_name(experiment.steps);
  const std::string start = in(run, "checkpoints/" + middle);
  if (!fs::is_directory(start)) return {"the checkpoint " + middle + " is not there"};

  const std::string again = in(scratch, "again/" + middle);
  set_up(experiment, arm, start)->trainer->copy_checkpoint(again);
  if (const std::string what = difference(start, again); !what.empty())
    return {"loading and saving " + middle + " changed " + what};

  const std::vector<StepRecord> unbroken = read_steps(in(run, "steps.bin"));
  const std::string second = runs.start_again(in(scratch, "start"));
  if (second.empty()) return {"the cell could not be started again"};
  if (const std::string what = difference_of_starts(unbroken, read_steps(in(second, "steps.bin")));
      !what.empty())
    return {what};

  const std::string copy = in(scratch, fs::path(run).filename().string());
  make_directories(in(copy, "checkpoints"));
  for (const char* name : {"run.json", "steps.bin", "evals.csv"})
    fs::copy_file(in(run, name), in(copy, name));
  fs::copy(start, in(copy, "checkpoints/" + middle), fs::copy_options::recursive);
  if (!runs.train_to_end(copy)) return {"the run could not be continued from " + middle};
  const std::vector<StepRecord> resumed = read_steps(in(copy, "steps.bin"));
  if (const std::string what = difference_after_resuming(unbroken, resumed, from); !what.empty())
    return {what};
  if (const std::string what =
          difference(in(run, "checkpoints/" + last), in(copy, "checkpoints/" + last));
      !what.empty())
    return {fmt::format("resumed at {}, {} differs at the end", from, what)};
  const double before = median_dt(unbroken, from), after = median_dt(resumed, from);
  return {"", before > 0.0 && after > 0.0 ? after / before : 0.0};
}

}  // namespace

int64_t resume_check_step(int64_t steps) {
  return steps - std::max<int64_t>(1, std::min<int64_t>(20, steps / 4));
}

std::string difference_after_resuming(std::span<const StepRecord> unbroken,
                                      std::span<const StepRecord> resumed,
                                      int64_t from) {
  if (unbroken.size() != resumed.size())
    return fmt::format("resumed at {}, it took {} steps, expected {}", from, resumed.size(),
                       unbroken.size());
  for (size_t i = static_cast<size_t>(from); i < unbroken.size(); ++i) {
    const StepRecord &a = unbroken[i], &b = resumed[i];
    if (a.data_hash != b.data_hash || a.tokens != b.tokens)
      return fmt::format("step {} was fed with other ids after resuming at {}", i, from);
    if (!same_bits(a.loss, b.loss))
      return fmt::format("the loss of step {} has other bits after resuming at {}", i, from);
    const bool cold = static_cast<int64_t>(i) < from + kUncountedSteps;
    if (b.counted() == cold)
      return fmt::format("step {} {} in times after resuming at {}, expected the first {} not to",
                         i, b.counted() ? "counts" : "does not count", from, kUncountedSteps);
  }
  return "";
}

std::string difference_of_starts(std::span<const StepRecord> a, std::span<const StepRecord> b) {
  const size_t steps = std::min<size_t>(static_cast<size_t>(kStartSteps), a.size());
  if (b.size() < steps)
    return fmt::format("a second start ended after {} steps, expected {}", b.size(), steps);
  for (size_t i = 0; i < steps; ++i) {
    if (a[i].data_hash != b[i].data_hash)
      return fmt::format("step {} of a second start was fed with other ids", i);
    if (!same_bits(a[i].loss, b[i].loss))
      return fmt::format("the loss of step {} of a second start has other bits", i);
  }
  return "";
}

void check_resume(const std::string& run_folder,
                  const std::string& scratch,
                  const Experiment& experiment,
                  const Arm& arm,
                  const ResumeCheckRuns& runs) {
  remove_tree(scratch);
  const Verified verified = verify(run_folder, scratch, experiment, arm, runs);
  if (verified.detail.empty()) remove_tree(scratch);
  OrderedJson json;
  json["format"] = 1;
  json["result"] = verified.detail.empty() ? "pass" : "fail";
  json["detail"] = verified.detail;
  json["from_step"] = resume_check_step(experiment.steps);
  json["steps"] = experiment.steps;
  if (verified.dt_ratio > 0.0) json["dt_ratio"] = verified.dt_ratio;
  write_file_atomically(in(run_folder, "resume_check.json"), json.dump(1) + "\n");
}

}  // namespace tightloop
