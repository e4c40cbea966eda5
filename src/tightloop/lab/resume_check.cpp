#include "tightloop/lab/resume_check.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/arm_setup.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/run_record.h"

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

/// The first step from `from` on whose losses have other bits, or -1.
int64_t first_difference(const std::string& a, const std::string& b, int64_t from) {
  const std::vector<StepRecord> x = read_steps(in(a, "steps.bin")),
                                y = read_steps(in(b, "steps.bin"));
  if (x.size() != y.size()) return static_cast<int64_t>(std::min(x.size(), y.size()));
  for (size_t i = static_cast<size_t>(from); i < x.size(); ++i) {
    if (std::memcmp(&x[i].loss, &y[i].loss, sizeof x[i].loss) != 0 || x[i].tokens != y[i].tokens)
      return static_cast<int64_t>(i);
  }
  return -1;
}

std::string verify(const std::string& run,
                   const std::string& scratch,
                   const Experiment& experiment,
                   const Arm& arm,
                   const std::function<bool(const std::string&)>& train_to_end) {
  const int64_t from = resume_check_step(experiment.steps);
  const std::string middle = checkpoint_name(from), last = checkpoint_name(experiment.steps);
  const std::string start = in(run, "checkpoints/" + middle);
  if (!fs::is_directory(start)) return "the checkpoint " + middle + " is not there";

  const std::string again = in(scratch, "again/" + middle);
  set_up(experiment, arm, start)->trainer->copy_checkpoint(again);
  if (const std::string what = difference(start, again); !what.empty())
    return "loading and saving " + middle + " changed " + what;

  const std::string copy = in(scratch, fs::path(run).filename().string());
  make_directories(in(copy, "checkpoints"));
  for (const char* name : {"run.json", "steps.bin", "evals.csv"})
    fs::copy_file(in(run, name), in(copy, name));
  fs::copy(start, in(copy, "checkpoints/" + middle), fs::copy_options::recursive);
  if (!train_to_end(copy)) return "the run could not be continued from " + middle;
  if (const int64_t step = first_difference(run, copy, from); step >= 0)
    return fmt::format("the loss of step {} has other bits after resuming at {}", step, from);
  if (const std::string what =
          difference(in(run, "checkpoints/" + last), in(copy, "checkpoints/" + last));
      !what.empty())
    return fmt::format("resumed at {}, {} differs at the end", from, what);
  return "";
}

}  // namespace

int64_t resume_check_step(int64_t steps) {
  return steps - std::max<int64_t>(1, std::min<int64_t>(20, steps / 4));
}

void check_resume(const std::string& run_folder,
                  const std::string& scratch,
                  const Experiment& experiment,
                  const Arm& arm,
                  const std::function<bool(const std::string& folder)>& train_to_end) {
  remove_tree(scratch);
  const std::string detail = verify(run_folder, scratch, experiment, arm, train_to_end);
  if (detail.empty()) remove_tree(scratch);
  OrderedJson json;
  json["format"] = 1;
  json["result"] = detail.empty() ? "pass" : "fail";
  json["detail"] = detail;
  json["from_step"] = resume_check_step(experiment.steps);
  json["steps"] = experiment.steps;
  write_file_atomically(in(run_folder, "resume_check.json"), json.dump(1) + "\n");
}

}  // namespace tightloop
