#include "tightloop/text/story_encoder.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/text/split.h"
#include "tightloop/text/story_test_util.h"

namespace tightloop {
namespace {

/// A byte-level tokenizer with these merges, given as text; each part must exist before.
Tokenizer byte_level(const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<std::string> known;
  for (int b = 0; b < 256; ++b) known.emplace_back(1, static_cast<char>(b));
  const auto id = [&](const std::string& text) {
    const auto at = std::find(known.begin(), known.end(), text);
    EXPECT_NE(at, known.end()) << text;
    return static_cast<int32_t>(at - known.begin());
  };
  std::vector<std::pair<int32_t, int32_t>> pairs;
  for (const auto& [left, right] : merges) {
    pairs.emplace_back(id(left), id(right));
    known.push_back(left + right);
  }
  return Tokenizer::byte_level(pairs, kNanochatSplit, {"<|bos|>"});
}

/// " ," becomes ",", " ." becomes ".", BOS goes.
std::string plain(const std::string& spaced) {
  std::string out;
  for (size_t i = std::string("<|bos|> ").size(); i < spaced.size(); ++i)
    if (!(spaced[i] == ' ' && (spaced[i + 1] == '.' || spaced[i + 1] == ','))) out += spaced[i];
  return out;
}

// Against P(tokens so far) from a list of all stories, encoded whole: nothing of tries or words.
void expect_exact(const Tokenizer& tokenizer) {
  const StoryCorpus corpus(tiny_story_settings());
  const StoryEncoder encoder(corpus, tokenizer);
  const StoryEnumeration all;
  std::vector<std::pair<std::vector<int32_t>, double>> stories;
  for (const auto& [text, p] : all.stories) {
    std::vector<int32_t> tokens{*tokenizer.bos_id()};
    tokenizer.encode_append(plain(text), SpecialTokens::as_text, tokens);
    stories.emplace_back(std::move(tokens), p);
  }
  std::sort(stories.begin(), stories.end());
  std::vector<double> below(stories.size() + 1, 0.0);
  for (size_t i = 0; i < stories.size(); ++i) below[i + 1] = below[i] + stories[i].second;
  int carried = 0;
  for (uint64_t i = 0; i < 300; ++i) {
    const SyntheticDocument doc = encoder.story(i);
    size_t low = 0, high = stories.size();
    double before = 1.0, sum = 0;
    for (size_t t = 0; t < doc.tokens.size(); ++t) {
      const auto begin = stories.begin() + static_cast<std::ptrdiff_t>(low);
      const auto end = stories.begin() + static_cast<std::ptrdiff_t>(high);
      const auto token_at = [t](const auto& story) {
        return t < story.first.size() ? story.first[t] : -1;
      };
      const auto from = std::partition_point(
          begin, end, [&](const auto& s) { return token_at(s) < doc.tokens[t]; });
      const auto to = std::partition_point(
          from, end, [&](const auto& s) { return token_at(s) == doc.tokens[t]; });
      low = static_cast<size_t>(from - stories.begin());
      high = static_cast<size_t>(to - stories.begin());
      const double mass = below[high] - below[low];
      ASSERT_GT(mass, 0);
      ASSERT_NEAR(doc.nll[t], -std::log(mass / before), 1e-5)
          << tokenizer.decode(std::span(doc.tokens).first(t + 1));
      carried += doc.nll[t] > 0 && static_cast<Skill>(doc.skill[t]) == Skill::recall;
      before = mass;
      sum += doc.nll[t];
    }
    // The same story as the words': the same total.
    const SyntheticDocument words = corpus.story(i);
    double word_sum = 0;
    for (const float nats : words.nll) word_sum += nats;
    ASSERT_NEAR(sum, word_sum, 1e-4);
    std::vector<int32_t> without_bos(doc.tokens.begin() + 1, doc.tokens.end());
    ASSERT_EQ(tokenizer.decode(without_bos), corpus.text(words.tokens));
  }
  if (!tokenizer.is_word_level()) {
    // "Then" and "The" part at the blank or "n": some recalls carry the end of a word.
    EXPECT_GT(carried, 0);
  }
}

TEST(StoryEncoder, ExactForBytes) {
  expect_exact(byte_level({}));
}

TEST(StoryEncoder, ExactForMerges) {
  expect_exact(byte_level({{"h", "e"},
                           {" ", "T"},
                           {" T", "he"},
                           {"n", "d"},
                           {"r", "e"},
                           {" ", "s"},
                           {" s", "l"},
                           {"i", "n"},
                           {"in", "d"},
                           {" ", "l"},
                           {" l", "a"}}));
}

TEST(StoryEncoder, WordLevelIsTheCorpusItself) {
  for (const StorySettings& settings : {StorySettings::small(), StorySettings::large()}) {
    const StoryCorpus corpus(settings);
    const Tokenizer tokenizer = corpus.tokenizer();
    const StoryEncoder encoder(corpus, tokenizer);
    for (uint64_t i = 0; i < 200; ++i) {
      const SyntheticDocument a = encoder.story(i), b = corpus.story(i);
      ASSERT_EQ(a.tokens, b.tokens);
      ASSERT_EQ(a.nll, b.nll);
      ASSERT_EQ(a.skill, b.skill);
    }
  }
}

TEST(StoryEncoder, RefusesTokenizersThatMergeAcrossWords) {
  const StoryCorpus corpus(tiny_story_settings());
  // Everything is one chunk, and "e " + … merges over the blank between words.
  const std::vector<std::pair<int32_t, int32_t>> merges{{'e', ' '}};
  const Tokenizer tokenizer = Tokenizer::byte_level(merges, "[\\s\\S]+", {"<|bos|>"});
  EXPECT_THROW(StoryEncoder(corpus, tokenizer).story(0), Error);
  const Tokenizer nameless = Tokenizer::byte_level({}, kNanochatSplit, {"<|pad|>"});
  EXPECT_THROW(StoryEncoder(corpus, nameless), Error);
}

}  // namespace
}  // namespace tightloop
