#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/recipe.h"
#include "tightloop/core/tensor.h"

namespace tightloop {

enum class OptimizerKind { adamw, muon };

std::string_view name_of(OptimizerKind kind);

/// Parameters that are updated by one rule with one set of hyperparameters.
struct ParameterGroup {
  OptimizerKind kind = OptimizerKind::adamw;
  std::string name;  // "embed", "muon 512x128", …: unique
  std::vector<std::string> parameters;
  double lr = 0.0;     // peak: every factor but the schedule's is in it
  double beta1 = 0.0;  // AdamW only; Muon's momentum comes from the schedule
  double beta2 = 0.0;
  double eps = 0.0;  // AdamW only
  double weight_decay = 0.0;
  bool schedule_weight_decay = false;  // whether the schedule of the decay multiplies it (Muon)
};

/// The rates a user sets, before any scaling.
struct BaseRates {
  double matrix_lr = 0.0;
  double embedding_lr = 0.0;
  double unembedding_lr = 0.0;
  double scalar_lr = 0.0;
  double weight_decay = 0.0;  // Muon only
};

BaseRates default_rates(Recipe recipe);

struct NamedShape {
  std::string name;
  Shape shape;
};

/// The groups of a nanochat model, in the order unembed, embed, value, resid, x0, smear, then one
/// Muon group per distinct shape in ascending order of shape. Groups without members are left out;
/// members keep the order of `parameters`.
///   lr_factor     multiplies every rate of `rates` (batch factor and the user's multiplier); the
///                 smear group has a fixed rate of its own
///   weight_decay  Muon's, after the transfer law; rates.weight_decay is not read
/// Embeddings and head also get (width / 768)^-1/2. Error{internal} for a parameter of no group.
std::vector<ParameterGroup> nanochat_groups(Recipe recipe,
                                            const std::vector<NamedShape>& parameters,
                                            int64_t width,
                                            const BaseRates& rates,
                                            double lr_factor,
                                            double weight_decay);

}  // namespace tightloop
