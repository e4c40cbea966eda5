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

/// The case.json of a nanochat parity case.
struct NanochatCase {
  NanochatConfig model;
  std::vector<CaseGroup> groups;
  int64_t steps = 0;
  std::vector<double> losses;  // one a step
};

/// `name` is for messages. Error{data} naming the field; Error{unsupported} for an optimizer that
/// is not built in. Groups name parameters of the model, each once.
NanochatCase parse_nanochat_case(std::string_view text, const std::string& name);

}  // namespace tightloop
