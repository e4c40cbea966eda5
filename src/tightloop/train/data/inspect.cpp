#include "tightloop/train/data/inspect.h"

#include <algorithm>
#include <bit>
#include <filesystem>

#include "tightloop/core/error.h"
#include "tightloop/io/token_shard.h"

namespace tightloop {

ShardSummary inspect_shards(const std::vector<std::string>& paths, const InspectOptions& options) {
  ShardSummary out;
  std::vector<int64_t> lengths;
  double floor_sum = 0;
  bool all_floors = !paths.empty();
  std::array<double, kSkillCount> skill_sum{};
  for (const std::string& path : paths) {
    const TokenShard tokens(path);
    ShardSummary::Shard& shard = out.shards.emplace_back();
    shard.path = path;
    shard.tokens = tokens.count();
    shard.token_bytes = tokens.token_bytes();
    shard.max_token = tokens.max_token();
    std::optional<int64_t> begin;
    const auto end_document = [&](int64_t end) {
      if (!begin) {
        shard.leading_tokens = end;
        return;
      }
      lengths.push_back(end - *begin);
      if (std::ssize(out.first) < options.documents) {
        std::vector<int32_t>& first = out.first.emplace_back(
            static_cast<size_t>(std::min<int64_t>(end - *begin, options.document_tokens)));
        tokens.copy(*begin, first);
      }
    };
    for (int64_t i = 0; i < tokens.count(); ++i) {
      if (tokens[i] != options.bos) continue;
      end_document(i);
      begin = i;
      ++shard.documents;
    }
    end_document(tokens.count());
    shard.has_floor = std::filesystem::exists(floor_path(path));
    all_floors = all_floors && shard.has_floor;
    if (shard.has_floor) {
      const FloorFile floor(floor_path(path), tokens.count());
      for (size_t i = 0; i < floor.nats().size(); ++i) {
        const size_t skill = floor.classes()[i];
        if (skill >= kSkillCount)
          fail(ErrorKind::data, "{}: token {} has class {}, expected 0..{}", floor_path(path), i,
               skill, kSkillCount - 1);
        floor_sum += floor.nats()[i];
        skill_sum[skill] += floor.nats()[i];
        ++out.skill_tokens[skill];
      }
    }
    out.tokens += shard.tokens;
    out.documents += shard.documents;
    out.max_token = std::max(out.max_token, shard.max_token);
  }
  if (!lengths.empty()) {
    for (const int64_t length : lengths) {
      const auto bin = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(length)) - 1);
      if (out.lengths.size() <= bin) out.lengths.resize(bin + 1);
      ++out.lengths[bin];
      out.mean += static_cast<double>(length);
    }
    out.mean /= static_cast<double>(lengths.size());
    const auto middle = lengths.begin() + std::ssize(lengths) / 2;
    std::nth_element(lengths.begin(), middle, lengths.end());
    out.median = *middle;
    const auto [low, high] = std::minmax_element(lengths.begin(), lengths.end());
    out.shortest = *low;
    out.longest = *high;
  }
  if (all_floors && out.tokens > 0) {
    out.floor = floor_sum / static_cast<double>(out.tokens);
    for (size_t k = 0; k < kSkillCount; ++k)
      if (out.skill_tokens[k] > 0)
        out.skill_floor[k] = skill_sum[k] / static_cast<double>(out.skill_tokens[k]);
  }
  return out;
}

}  // namespace tightloop
