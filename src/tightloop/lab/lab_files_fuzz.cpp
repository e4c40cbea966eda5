// Fuzz target: the JSON files of a lab folder (lock/target.json, experiments/<name>.json) are read
// or refused with Error{data}; what was read can be asked for its cells and hashes.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/lab/experiment.h"
#include "tightloop/lab/lock.h"

namespace {

template <typename Read>
void only_data_errors(const Read& read) {
  try {
    read();
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  only_data_errors([&] {
    const auto lock = tightloop::parse_lock(text, "target.json");
    if (lock.hash().size() != 64) std::abort();
  });
  only_data_errors([&] {
    const auto experiment = tightloop::parse_experiment(text, "experiment.json");
    if (experiment.cells().size() != experiment.arms.size() * experiment.seeds.size()) std::abort();
    for (const tightloop::Arm& arm : experiment.arms) experiment.config_hash(arm);
  });
  return 0;
}
