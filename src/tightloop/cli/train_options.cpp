#include "tightloop/cli/train_options.h"

#include <nlohmann/json.hpp>

#include "tightloop/core/json.h"
#include "tightloop/train/checkpoint.h"

namespace tightloop::cli {
namespace {

std::string_view summary_of_preset(std::string_view name) {
  if (name == "quick")
    return "3 layers, width 128, 200 steps of 8,192 tokens: about a minute on two cores";
  if (name == "quick-lab")
    return "2 layers, width 128, 80 steps of 4,096 tokens: one run of `lab run --preset quick-lab`";
  return {};
}

}  // namespace

TrainFlags::TrainFlags(CLI::App& command) {
  declare_train_options(options, config);
  std::string help = "a set of values; `config show --preset NAME --changed` lists them:";
  for (const std::string& name : train_preset_names()) {
    TL_CHECK(!summary_of_preset(name).empty());
    help += fmt::format("\n  {}: {}", name, summary_of_preset(name));
  }
  command.add_option("--preset", preset, help)->type_name("NAME");
  bind_config(command, options, sources);
}

void TrainFlags::resolve() {
  for (const auto& [flag, value] : sources.flags) {
    if (flag != "resume") continue;
    // The run's own options come first; flags given now override them.
    const std::string checkpoint = find_checkpoint(value);
    const Json state = load_checkpoint_state(checkpoint);
    const std::string where = checkpoint + "/state.json";
    for (const auto& [key, entry] : get_object(state, "options", where).items()) {
      const std::string text = get_string(entry, "value", where + ": options." + key);
      const std::string origin = get_string(entry, "origin", where + ": options." + key);
      if (origin != "default" && key != "run.resume") options.set(key, text, origin);
    }
  }
  if (!preset.empty()) {
    for (const auto& [flag, value] : train_preset(preset))
      options.set(flag, value, "preset " + preset);
  }
  apply_config(options, sources);
}

}  // namespace tightloop::cli
