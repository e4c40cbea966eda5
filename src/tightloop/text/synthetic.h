#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tightloop {

/// What a model must have learned to predict a token of a built-in corpus.
enum class Skill : uint8_t {
  fixed,   // grammar: the only word that can come next
  draw,    // a fresh random fact: irreducible, only its frequencies can be learned
  branch,  // which sentence comes next
  recall,  // a fact named earlier in the story
  table,   // a fact about the world that must be stored in the weights
  sum,     // arithmetic over the context
};
constexpr int kSkillCount{6};
constexpr std::array<std::string_view, kSkillCount> kSkillNames{"fixed",  "draw",  "branch",
                                                                "recall", "table", "sum"};

/// A generated document. nll[t] = −ln P(token t | tokens 0..t−1) in nats, exact; skill[t] its
/// class.
struct SyntheticDocument {
  std::vector<int32_t> tokens;
  std::vector<float> nll;
  std::vector<uint8_t> skill;
};

}  // namespace tightloop
