// Fuzz target: the row of a run folder is made or refused with Error{data}. The input is its files
// in the order below with a NUL after each but the last.
#include <array>
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/io/fuzz_files.h"
#include "tightloop/lab/run_row.h"

namespace {

constexpr std::array<std::string_view, 6> kFiles{
    "run.json", "summary.json", "outcome.json", "resume_check.json", "evals.csv", "steps.bin"};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const tightloop::FuzzFolder folder;
  folder.clear();
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (const std::string_view name : kFiles) {
    const size_t cut = name == kFiles.back() ? std::string_view::npos : rest.find('\0');
    folder.write(name, rest.substr(0, cut));
    rest = cut == std::string_view::npos ? std::string_view() : rest.substr(cut + 1);
  }
  tightloop::Experiment experiment;
  experiment.name = "G";
  experiment.arms = {{"baseline", {}}};
  experiment.seeds = {1};
  tightloop::TargetLock lock;
  lock.metric = "val_bpb";
  lock.threshold = 2.0;  // the seeds cross it
  try {
    tightloop::has_ended(folder.path());
    tightloop::row_of_run(folder.path(), experiment, experiment.cells().front(), 1, &lock);
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
  return 0;
}
