#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tightloop/text/synthetic.h"

namespace tightloop {

struct InspectOptions {
  int32_t bos = 0;           // starts every document
  int documents = 3;         // how many of the first ones to show
  int document_tokens = 64;  // of each, at most
};

/// What is in some token shards.
struct ShardSummary {
  struct Shard {
    std::string path;
    int64_t tokens = 0;
    int64_t token_bytes = 0;
    uint32_t max_token = 0;
    int64_t documents = 0;
    int64_t leading_tokens = 0;  // before the first document
    bool has_floor = false;
  };
  std::vector<Shard> shards;
  int64_t tokens = 0;
  uint32_t max_token = 0;
  int64_t documents = 0;
  int64_t shortest = 0, median = 0, longest = 0;  // documents, in tokens with BOS
  double mean = 0;
  /// lengths[i]: documents of 2^i..2^(i+1) − 1 tokens; no trailing zeros.
  std::vector<int64_t> lengths;
  /// With floor files on all shards: mean −log p in nats, and tokens and mean by skill.
  std::optional<double> floor;
  std::array<int64_t, kSkillCount> skill_tokens{};
  std::array<double, kSkillCount> skill_floor{};
  std::vector<std::vector<int32_t>> first;  // the first documents, cut to document_tokens
};

/// Reads all tokens of the shards. Error{io}, Error{data} as TokenShard and FloorFile; Error{data}
/// for a skill out of range.
ShardSummary inspect_shards(const std::vector<std::string>& paths, const InspectOptions& options);

}  // namespace tightloop
