#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/model/nanochat.h"
#include "tightloop/optim/groups.h"

namespace tightloop {

/// One optimizer group of a parity case with its constants.
struct CaseGroup {
  ParameterGroup group;
  double momentum = 0.0;
};

/// How far a run may be from the expected values, by quantity (check_case.h says how errors are
/// measured). These are for cases computed in float32: the float64 reference has used up to 0.4 of
/// them on such cases, the float32 kernels up to 0.6.
struct CaseTolerances {
  double loss = 1e-6;          // of the first step
  double updated_loss = 1e-6;  // of the steps after an update
  double token_losses = 5e-6;
  double logits = 5e-6;
  double grad = 2e-5;
  double final = 2e-3;
  double small = 1.0;  // factor for gradients and finals of fewer than kSmallTensor elements
};
/// What fewer numbers than these add up to depends on luck in bf16: some of them cancel.
inline constexpr int64_t kSmallTensor{1000};

/// The same for a run in bf16 on a case computed in float32: one to four times the most that
/// nanochat itself has in bf16 on such cases (bench/peers/nanochat_bf16.py). They find a wrong
/// formula, not a lost digit.
CaseTolerances bf16_tolerances();

/// The case.json of a nanochat parity case.
struct NanochatCase {
  NanochatConfig model;
  CaseTolerances tolerances;  // of its "dtype"
  std::vector<CaseGroup> groups;
  int64_t steps = 0;
  std::vector<double> losses;  // one a step
};

/// `name` is for messages. Error{data} naming the field; Error{unsupported} for an optimizer that
/// is not built in, or a dtype other than float32 (the default), for which no tolerances are known.
/// Groups name parameters of the model, each once.
NanochatCase parse_nanochat_case(std::string_view text, const std::string& name);

}  // namespace tightloop
