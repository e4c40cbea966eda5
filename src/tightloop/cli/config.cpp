#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"
#include "tightloop/text/story_corpus.h"
#include "tightloop/text/tokenizer.h"
#include "tightloop/train/derive.h"

namespace tightloop::cli {
namespace {

struct ShowFlags {
  bool changed = false;
  bool json = false;
};

/// One line: an option, or what follows from the options.
struct Row {
  std::string group, key, value, unit, origin, default_text, flag;
};

/// Of the tokenizer that a run would read; the built-in corpus's when no data are given.
int64_t vocabulary_of(const TrainConfig& config) {
  if (config.tokenizer) return Tokenizer::load(*config.tokenizer).vocab_size();
  if (!config.data.empty()) return Tokenizer::load(config.data).vocab_size();
  return StoryCorpus(StorySettings::small()).vocab_size();
}

/// Values of options that are not set, by flag, and where they come from.
std::map<std::string, std::pair<std::string, std::string>> fill_ins(const TrainConfig& config,
                                                                    const Derived& d) {
  const std::string recipe = fmt::format("recipe {}", name_of(config.recipe));
  const auto text = [](double value) { return fmt::format("{}", value); };
  const auto steps_from = [&]() -> std::string {
    if (config.target_flops) return "derived from --target-flops and the batch";
    return "derived: param-data ratio x scaling parameters / batch";
  };
  return {
      {"num-iterations", {std::to_string(d.transfer.steps), steps_from()}},
      {"total-batch-size",
       {std::to_string(d.transfer.batch), "derived: 524288 (D / D at depth 12)^0.383"}},
      {"target-param-data-ratio", {text(d.param_data_ratio), recipe}},
      {"warmup-steps", {std::to_string(d.schedule.warmup_steps), recipe}},
      {"warmdown-ratio", {text(d.schedule.warmdown_ratio), recipe}},
      {"final-lr-frac", {text(d.schedule.final_lr_frac), recipe}},
      {"matrix-lr", {text(d.rates.matrix_lr), recipe}},
      {"embedding-lr", {text(d.rates.embedding_lr), recipe}},
      {"unembedding-lr", {text(d.rates.unembedding_lr), recipe}},
      {"scalar-lr", {text(d.rates.scalar_lr), recipe}},
      {"weight-decay", {text(d.rates.weight_decay), recipe}},
      {"eval-tokens", {std::to_string(d.eval_tokens), recipe}},
  };
}

std::vector<Row> derived_rows(const Derived& d) {
  std::vector<Row> rows;
  const auto add = [&](std::string key, std::string value, std::string unit, std::string origin) {
    rows.push_back({"Derived", "derived." + std::move(key), std::move(value), std::move(unit),
                    "derived: " + std::move(origin), "", ""});
  };
  const auto text = [](double value) { return fmt::format("{:.6g}", value); };
  const Transfer& t = d.transfer;
  add("vocab_size", std::to_string(d.model.vocab_size), "tokens", "the tokenizer of the data");
  add("width", std::to_string(d.model.n_embd), "", "depth x aspect ratio, up to whole heads");
  add("heads", std::to_string(d.model.n_head), "", "width / head size");
  add("parameters", std::to_string(d.sizes.parameters), "", "the model");
  add("scaling_parameters", std::to_string(d.sizes.scaling), "", "matrices and output head");
  add("flops_per_token", std::to_string(d.sizes.flops_per_token), "FLOPs", "the model");
  add("tokens", std::to_string(t.batch * t.steps), "tokens", "batch x steps");
  add("flops",
      text(static_cast<double>(d.sizes.flops_per_token) * static_cast<double>(t.batch) *
           static_cast<double>(t.steps)),
      "FLOPs", "tokens x FLOPs per token");
  add("micro_steps", std::to_string(d.micro_steps), "", "batch / micro-batch");
  add("lr_factor", text(t.lr_factor), "", "sqrt(batch / 524288) x --lr-mult");
  add("weight_decay", text(t.weight_decay), "",
      "sqrt(batch / 524288) x D at depth 12 / D x --wd-mult");
  add("decay_timescale", text(t.tau), "of the run", "1 / (rate x decay x steps)");
  for (const ParameterGroup& group : d.groups)
    add("lr." + group.name, text(group.lr), "", fmt::format("peak rate, {}", name_of(group.kind)));
  return rows;
}

std::vector<Row> rows_of(const TrainFlags& train, bool changed) {
  const Derived d = derive(train.config, vocabulary_of(train.config));
  const auto filled = fill_ins(train.config, d);
  std::vector<Row> rows;
  for (const OptionSpec& spec : train.options.all()) {
    if (changed && spec.origin == "default") continue;
    Row row{spec.group,  spec.key,          spec.get(),      spec.unit,
            spec.origin, spec.default_text, "--" + spec.flag};
    const auto it = filled.find(spec.flag);
    if (row.value.empty() && it != filled.end()) std::tie(row.value, row.origin) = it->second;
    rows.push_back(std::move(row));
  }
  if (!changed) {
    const std::vector<Row> derived = derived_rows(d);
    rows.insert(rows.end(), derived.begin(), derived.end());
  }
  return rows;
}

int run_show(TrainFlags& train, const ShowFlags& flags) {
  train.resolve();
  const std::vector<Row> rows = rows_of(train, flags.changed);
  if (flags.json) {
    OrderedJson options = OrderedJson::object(), derived = OrderedJson::object();
    for (const Row& row : rows) {
      if (row.flag.empty())
        derived[row.key.substr(row.key.find('.') + 1)] = {
            {"value", row.value}, {"unit", row.unit}, {"origin", row.origin}};
      else
        options[row.key] = {{"value", row.value},
                            {"default", row.default_text},
                            {"unit", row.unit},
                            {"origin", row.origin},
                            {"flag", row.flag}};
    }
    out(OrderedJson{{"v", 1}, {"options", options}, {"derived", derived}}.dump() + "\n");
    return kDone;
  }
  size_t key_width = 0, value_width = 0, unit_width = 0;
  for (const Row& row : rows) {
    key_width = std::max(key_width, row.key.size());
    value_width = std::max(value_width, row.value.size());
    unit_width = std::max(unit_width, row.unit.size());
  }
  value_width = std::clamp<size_t>(value_width, 5, 40);
  std::string group;
  bool has_unset = false;
  for (const Row& row : rows) {
    if (row.group != group) {
      out(fmt::format("{}{}\n", group.empty() ? "" : "\n", row.group));
      group = row.group;
    }
    has_unset = has_unset || row.value.empty();
    out(fmt::format("  {:<{}}  {:<{}}  {:<{}}  {}\n", row.key, key_width,
                    row.value.empty() ? "-" : row.value, value_width, row.unit, unit_width,
                    row.origin));
  }
  if (rows.empty()) out("every option has its default\n");
  if (has_unset) talk("\n-: not set\n");
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
