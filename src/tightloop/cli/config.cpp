#include <algorithm>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"

namespace tightloop::cli {
namespace {

struct ShowFlags {
  bool changed = false;
  bool json = false;
};

int run_show(TrainFlags& train, const ShowFlags& flags) {
  train.resolve();
  std::vector<const OptionSpec*> shown;
  for (const OptionSpec& spec : train.options.all()) {
    if (!flags.changed || spec.origin != "default") shown.push_back(&spec);
  }
  if (flags.json) {
    OrderedJson options = OrderedJson::object();
    for (const OptionSpec* spec : shown)
      options[spec->key] = {{"value", spec->get()},
                            {"default", spec->default_text},
                            {"unit", spec->unit},
                            {"origin", spec->origin},
                            {"flag", "--" + spec->flag}};
    out(OrderedJson{{"v", 1}, {"options", options}}.dump() + "\n");
    return kDone;
  }
  size_t key_width = 0, value_width = 0, unit_width = 0;
  for (const OptionSpec* spec : shown) {
    key_width = std::max(key_width, spec->key.size());
    value_width = std::max(value_width, spec->get().size());
    unit_width = std::max(unit_width, spec->unit.size());
  }
  value_width = std::clamp<size_t>(value_width, 5, 40);
  std::string group;
  bool has_unset = false;
  for (const OptionSpec* spec : shown) {
    if (spec->group != group) {
      out(fmt::format("{}{}\n", group.empty() ? "" : "\n", spec->group));
      group = spec->group;
    }
    const std::string value = spec->get();
    has_unset = has_unset || value.empty();
    out(fmt::format("  {:<{}}  {:<{}}  {:<{}}  {}\n", spec->key, key_width,
                    value.empty() ? "-" : value, value_width, spec->unit, unit_width,
                    spec->origin));
  }
  if (shown.empty()) out("every option has its default\n");
  if (has_unset) talk("\n-: not set, so derived from the depth and the recipe, or off\n");
  return kDone;
}

}  // namespace

void add_config(CLI::App& app, Runner& runner) {
  auto* config = app.add_subcommand("config", "what a training run would be told");
  auto* show =
      config->add_subcommand("show", "every option of train: value, unit and where it came from");
  auto train = std::make_shared<TrainFlags>(*show);
  auto flags = std::make_shared<ShowFlags>();
  show->add_flag("--changed", flags->changed, "only what is not at its default");
  show->add_flag("--json", flags->json, "one JSON object on stdout");
  show->footer(
      "Example: tightloop config show --preset quick -c my.toml --set optim.matrix_lr=0.02 "
      "--changed\n"
      "Switches have a --no- form. Settings: TOML file < --set < flag.");
  show->allow_extras();
  show->callback(
      [train, flags, &runner] { runner = [train, flags] { return run_show(*train, *flags); }; });
}

}  // namespace tightloop::cli
