#include "tightloop/optim/groups.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

constexpr double kReferenceWidth{768};
constexpr double kAdamEps{1e-10};
constexpr double kSmearLr{0.2};

ParameterGroup adamw(
    std::string name, double lr, double beta1, double beta2, double weight_decay = 0.0) {
  return {.kind = OptimizerKind::adamw,
          .name = std::move(name),
          .parameters = {},
          .lr = lr,
          .beta1 = beta1,
          .beta2 = beta2,
          .eps = kAdamEps,
          .weight_decay = weight_decay,
          .schedule_weight_decay = false};
}

/// Index into the AdamW groups of nanochat_groups, or -1 for a matrix of a block.
int adamw_group_of(std::string_view parameter) {
  if (parameter == "lm_head.weight") return 0;
  if (parameter == "transformer.wte.weight") return 1;
  if (parameter.starts_with("value_embeds.")) return 2;
  if (parameter == "resid_lambdas") return 3;
  if (parameter == "x0_lambdas") return 4;
  if (parameter == "smear_gate.weight" || parameter == "smear_lambda" ||
      parameter == "backout_lambda")
    return 5;
  if (parameter.starts_with("transformer.h.")) return -1;
  fail(ErrorKind::internal, "parameter '{}' belongs to no optimizer group", parameter);
}

}  // namespace

std::string_view name_of(OptimizerKind kind) {
  return kind == OptimizerKind::adamw ? "adamw" : "muon";
}

BaseRates default_rates(Recipe recipe) {
  if (recipe == Recipe::nanochat_2026_02)
    return {.matrix_lr = 0.02,
            .embedding_lr = 0.3,
            .unembedding_lr = 0.004,
            .scalar_lr = 0.5,
            .weight_decay = 0.2};
  return {.matrix_lr = 0.02,
          .embedding_lr = 0.3,
          .unembedding_lr = 0.008,
          .scalar_lr = 0.5,
          .weight_decay = 0.28};
}

std::vector<ParameterGroup> nanochat_groups(Recipe recipe,
                                            const std::vector<NamedShape>& parameters,
                                            int64_t width,
                                            const BaseRates& rates,
                                            double lr_factor,
                                            double weight_decay) {
  TL_CHECK(width > 0);
  const bool newer = recipe == Recipe::nanochat_2026_07;
  const double rho = 1.0 / std::sqrt(static_cast<double>(width) / kReferenceWidth);
  const double unembed = rates.unembedding_lr * lr_factor * rho;
  const double embed = rates.embedding_lr * lr_factor * rho;
  const double scalar = rates.scalar_lr * lr_factor;
  std::vector<ParameterGroup> groups;
  if (newer) {
    groups = {adamw("unembed", unembed, 0.8, 0.96, 0.01),
              adamw("embed", embed, 0.8, 0.995, 0.001),
              adamw("value", 0.5 * embed, 0.8, 0.995, 0.01),
              adamw("resid", 0.01 * scalar, 0.8, 0.95, 0.05),
              adamw("x0", scalar, 0.96, 0.95),
              adamw("smear", kSmearLr, 0.8, 0.95)};
  } else {
    groups = {adamw("unembed", unembed, 0.8, 0.95), adamw("embed", embed, 0.8, 0.95),
              adamw("value", embed, 0.8, 0.95),     adamw("resid", 0.01 * scalar, 0.8, 0.95),
              adamw("x0", scalar, 0.96, 0.95),      adamw("smear", kSmearLr, 0.8, 0.95)};
  }

  std::map<std::array<int64_t, 2>, ParameterGroup> muon;
  for (const NamedShape& parameter : parameters) {
    const int group = adamw_group_of(parameter.name);
    if (group >= 0) {
      groups[static_cast<size_t>(group)].parameters.push_back(parameter.name);
      continue;
    }
    if (parameter.shape.rank() != 2)
      fail(ErrorKind::internal, "parameter '{}' has shape {}, expected a matrix", parameter.name,
           to_string(parameter.shape));
    const int64_t rows = parameter.shape[0], cols = parameter.shape[1];
    ParameterGroup& same_shape = muon[{rows, cols}];
    if (same_shape.parameters.empty())
      same_shape = {.kind = OptimizerKind::muon,
                    .name = fmt::format("muon {}x{}", rows, cols),
                    .parameters = {},
                    .lr = rates.matrix_lr * lr_factor,
                    .beta1 = 0.0,
                    .beta2 = newer ? 0.90 : 0.95,
                    .eps = 0.0,
                    .weight_decay = weight_decay,
                    .schedule_weight_decay = true};
    same_shape.parameters.push_back(parameter.name);
  }
  std::erase_if(groups, [](const ParameterGroup& g) { return g.parameters.empty(); });
  for (auto& [shape, group] : muon) groups.push_back(std::move(group));
  return groups;
}

}  // namespace tightloop
