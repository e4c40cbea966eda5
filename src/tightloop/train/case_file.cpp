#include "tightloop/train/case_file.h"

#include <set>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/json.h"
#include "tightloop/model/nanochat_init.h"

namespace tightloop {
namespace {

double number(const Json& value, std::string_view where) {
  if (!value.is_number())
    fail(ErrorKind::data, "{}: got {}, expected a number", where, value.type_name());
  return value.get<double>();
}

CaseGroup read_group(const Json& json, int64_t index, const std::string& where) {
  CaseGroup read;
  const std::string kind = get_string(json, "kind", where);
  if (kind != "adamw" && kind != "muon")
    fail(ErrorKind::data, "{}: kind '{}' must be adamw or muon", where, kind);
  read.group.kind = kind == "muon" ? OptimizerKind::muon : OptimizerKind::adamw;
  read.group.name = fmt::format("group {}", index);
  for (const Json& name : get_array(json, "params", where)) {
    if (!name.is_string())
      fail(ErrorKind::data, "{}: params has a {}, expected names", where, name.type_name());
    read.group.parameters.push_back(name.get<std::string>());
  }
  read.group.lr = get_double(json, "lr", where);
  read.group.weight_decay = get_double(json, "weight_decay", where);
  if (read.group.kind == OptimizerKind::adamw) {
    const Json& betas = get_array(json, "betas", where);
    if (betas.size() != 2) fail(ErrorKind::data, "{}: betas must have 2 numbers", where);
    read.group.beta1 = number(betas[0], where + ".betas[0]");
    read.group.beta2 = number(betas[1], where + ".betas[1]");
    read.group.eps = get_double(json, "eps", where);
  } else {
    read.momentum = get_double(json, "momentum", where);
    read.group.beta2 = get_double(json, "beta2", where);
    if (get_int(json, "ns_steps", where) != 5)
      fail(ErrorKind::unsupported, "{}: ns_steps must be 5", where);
  }
  return read;
}

}  // namespace

CaseTolerances bf16_tolerances() {
  return {.loss = 4e-4,
          .updated_loss = 3e-3,
          .token_losses = 3e-3,
          .logits = 3e-2,
          .grad = 6e-2,
          .final = 0.5,
          .small = 4.0};
}

NanochatCase parse_nanochat_case(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  NanochatCase c;
  const std::string dtype = get_string(json, "dtype", name, "float32");
  if (dtype != "float32")
    fail(ErrorKind::unsupported, "{}: dtype '{}': tolerances are known for float32 only", name,
         dtype);
  Json config = get_object(json, "config", name);
  config["recipe"] = get_string(json, "recipe", name, "2026-07");
  c.model = nanochat_config_from_json(config.dump(), name);

  std::set<std::string> known;
  for (const NanochatParameter& p : nanochat_parameters(c.model)) known.insert(p.name);
  for (const Json& group : get_array(get_object(json, "optimizer", name), "groups", name)) {
    const auto index = static_cast<int64_t>(c.groups.size());
    const std::string where = fmt::format("{}: optimizer.groups[{}]", name, index);
    c.groups.push_back(read_group(group, index, where));
    for (const std::string& parameter : c.groups.back().group.parameters) {
      if (known.erase(parameter) == 0)
        fail(ErrorKind::data, "{}: '{}' is no parameter of the model, or is named twice", where,
             parameter);
    }
  }

  c.steps = get_int(json, "steps", name);
  for (const Json& loss : get_array(json, "losses", name))
    c.losses.push_back(number(loss, name + ": losses"));
  if (c.steps < 1 || static_cast<int64_t>(c.losses.size()) != c.steps)
    fail(ErrorKind::data, "{}: {} losses for {} steps", name, c.losses.size(), c.steps);
  const Json& windows = get_array(json, "window_sizes", name);
  if (static_cast<int64_t>(windows.size()) != c.model.n_layer)
    fail(ErrorKind::data, "{}: window_sizes has {} entries, expected one for each of {} layers",
         name, windows.size(), c.model.n_layer);
  for (int64_t i = 0; i < c.model.n_layer; ++i) {
    const Json& window = windows[static_cast<size_t>(i)];
    const std::string where = fmt::format("{}: window_sizes[{}]", name, i);
    if (!window.is_array() || window.empty() || !window[0].is_number_integer())
      fail(ErrorKind::data, "{}: got {}, expected [left, right]", where, window.dump());
    if (window[0].get<int64_t>() != c.model.window(i))
      fail(ErrorKind::data, "{} is {}, the pattern gives {}", where, window[0].get<int64_t>(),
           c.model.window(i));
  }
  return c;
}

}  // namespace tightloop
