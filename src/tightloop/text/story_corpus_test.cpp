#include "tightloop/text/story_corpus.h"

#include <cmath>
#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/text/story_test_util.h"

namespace tightloop {
namespace {

std::string spaced(const StoryCorpus& corpus, const std::vector<int32_t>& tokens) {
  std::string out;
  for (const int32_t token : tokens) {
    const std::string& piece = corpus.pieces()[static_cast<size_t>(token)];
    if (!out.empty()) out += ' ';
    out += piece[0] == ' ' ? piece.substr(1) : piece;
  }
  return out;
}

TEST(StoryCorpus, MatchesBruteForceEnumeration) {
  const StoryCorpus corpus(tiny_story_settings());
  const StoryEnumeration all;
  double total = 0, nats = 0;
  std::map<std::string, double> prefix_mass;  // of every beginning of a story, by whole words
  for (const auto& [text, p] : all.stories) {
    total += p;
    nats -= p * std::log(p);
    for (size_t i = 1; i <= text.size(); ++i)
      if (i == text.size() || text[i] == ' ') prefix_mass[text.substr(0, i)] += p;
  }
  EXPECT_NEAR(total, 1.0, 1e-9);
  EXPECT_GT(all.stories.size(), 10000u);
  // The recorded −log p of each token against P(prefix + token) / P(prefix), by sums over all
  // stories.
  std::set<std::string> seen;
  for (uint64_t i = 0; i < 2000; ++i) {
    const SyntheticDocument doc = corpus.story(i);
    std::string prefix;
    double before = 1.0;
    for (size_t t = 0; t < doc.tokens.size(); ++t) {
      if (t > 0) prefix += ' ';
      prefix += spaced(corpus, {doc.tokens[t]});
      const auto found = prefix_mass.find(prefix);
      ASSERT_NE(found, prefix_mass.end()) << prefix;
      ASSERT_NEAR(doc.nll[t], -std::log(found->second / before), 2e-6) << prefix;
      before = found->second;
    }
    seen.insert(prefix);
  }
  EXPECT_GT(seen.size(), 1000u);
  EXPECT_NEAR(corpus.entropy().nats_per_story, nats, 1e-5);
}

TEST(StoryCorpus, EveryProbabilityTableSumsToOne) {
  for (const StorySettings& settings :
       {tiny_story_settings(), StorySettings::small(), StorySettings::large()}) {
    const StoryCorpus corpus(settings);
    int distributions = 0;
    for (uint64_t i = 0; i < 50; ++i) {
      Skill last = Skill::fixed;
      int step = static_cast<int>(i);
      corpus.walk([&](const WordChoices& choices, Skill skill) {
        uint64_t sum = 0;
        std::set<int32_t> words;
        int allowed = -1;
        for (int j = 0; j < static_cast<int>(choices.words.size()); ++j) {
          if (!choices.allows(j)) continue;
          sum += choices.weights[static_cast<size_t>(j)];
          words.insert(choices.words[static_cast<size_t>(j)]);
          if (allowed < 0 || (j + step) % 7 == 0) allowed = j;
        }
        EXPECT_EQ(sum, choices.total);
        EXPECT_EQ(words.size() + (choices.without >= 0), choices.words.size());  // all distinct
        ++distributions;
        step = step * 5 + 1;
        step %= 1000;
        last = skill;
        return allowed;
      });
      EXPECT_EQ(last, Skill::fixed);
    }
    EXPECT_GT(distributions, 50 * 20);
  }
}

TEST(StoryCorpus, SampledRateAgreesWithAnalyticRate) {
  for (const StorySettings& settings : {StorySettings::small(), StorySettings::large()}) {
    const StoryCorpus corpus(settings);
    const StoryEntropy expected = corpus.entropy();
    std::array<double, kSkillCount> nats{}, tokens{};
    double sum = 0, squares = 0, length = 0;
    constexpr int kStories = 20000;
    int64_t longest = 0;
    for (uint64_t i = 0; i < kStories; ++i) {
      const SyntheticDocument doc = corpus.story(i);
      double of_story = 0;
      for (size_t t = 0; t < doc.tokens.size(); ++t) {
        nats[doc.skill[t]] += doc.nll[t];
        tokens[doc.skill[t]] += 1;
        of_story += doc.nll[t];
      }
      sum += of_story;
      squares += of_story * of_story;
      length += static_cast<double>(doc.tokens.size());
      longest = std::max(longest, static_cast<int64_t>(doc.tokens.size()));
    }
    const double mean = sum / kStories;
    const double error = std::sqrt((squares / kStories - mean * mean) / kStories);
    EXPECT_NEAR(mean, expected.nats_per_story, 4 * error);
    EXPECT_NEAR(length / kStories, expected.tokens_per_story, 0.6);
    EXPECT_LE(longest, corpus.max_tokens());
    for (int s = 0; s < kSkillCount; ++s) {
      const auto k = static_cast<size_t>(s);
      EXPECT_NEAR(tokens[k] / kStories, expected.tokens[k], 0.02 * expected.tokens[k])
          << kSkillNames[k];
      EXPECT_NEAR(nats[k] / kStories, expected.nats[k], 0.02 * expected.nats[k] + 1e-12)
          << kSkillNames[k];
    }
  }
}

TEST(StoryCorpus, ScoreReadsWhatStoryWrote) {
  for (const StorySettings& settings : {StorySettings::small(), StorySettings::large()}) {
    const StoryCorpus corpus(settings, 7);
    for (uint64_t i = 0; i < 500; ++i) {
      const SyntheticDocument doc = corpus.story(StoryCorpus::kValidationStream + i);
      const StoryCorpus::Score score = corpus.score(doc.tokens);
      ASSERT_TRUE(score.complete);
      ASSERT_FALSE(score.error) << *score.error;
      ASSERT_EQ(score.document.tokens, doc.tokens);
      ASSERT_EQ(score.document.nll, doc.nll);
      ASSERT_EQ(score.document.skill, doc.skill);
    }
  }
}

TEST(StoryCorpus, ScoreFindsMistakes) {
  const StoryCorpus corpus(StorySettings::small());
  const SyntheticDocument doc = corpus.story(1);
  // A beginning is fine but not complete.
  StoryCorpus::Score score = corpus.score(std::span(doc.tokens).first(20));
  EXPECT_FALSE(score.complete);
  EXPECT_FALSE(score.error);
  EXPECT_EQ(score.document.tokens.size(), 20u);
  // A wrong recall: replace the hero's name where it is recalled.
  std::vector<int32_t> wrong = doc.tokens;
  const size_t t = static_cast<size_t>(
      std::find(doc.skill.begin(), doc.skill.end(), static_cast<uint8_t>(Skill::recall)) -
      doc.skill.begin());
  wrong[t] = wrong[t] == 1 ? 2 : 1;
  score = corpus.score(wrong);
  EXPECT_FALSE(score.complete);
  ASSERT_TRUE(score.error);
  EXPECT_NE(score.error->find("recall"), std::string::npos) << *score.error;
  EXPECT_EQ(score.document.tokens.size(), t);
  wrong = doc.tokens;
  wrong.push_back(0);
  EXPECT_TRUE(corpus.score(wrong).error);
  wrong[3] = 100000;
  EXPECT_NE(corpus.score(wrong).error->find("id 100000"), std::string::npos);
}

TEST(StoryCorpus, StoriesAreFixedForGood) {
  const StoryCorpus corpus(StorySettings::small());
  EXPECT_EQ(corpus.vocab_size(), 256);
  EXPECT_EQ(corpus.text(corpus.story(3).tokens),
            "One misty day, Julia and Clara went to the castle. She had a stone. The clock struck "
            "nine. After two hours it struck eleven. But Clara was happy, so she danced. At last "
            "Julia gave the stone to Clara and they left the castle.");
  EXPECT_EQ(StoryCorpus(StorySettings::large()).vocab_size(), 968);
  EXPECT_NEAR(corpus.entropy().rate(), 0.619985895604935, 1e-12);
  EXPECT_EQ(corpus.max_tokens(), 127);
  EXPECT_EQ(corpus.story(5).tokens, corpus.story(5).tokens);
  EXPECT_NE(corpus.story(5).tokens, StoryCorpus(StorySettings::small(), 1).story(5).tokens);
  std::set<std::vector<int32_t>> all;
  for (uint64_t i = 0; i < 1000; ++i) all.insert(corpus.story(i).tokens);
  EXPECT_EQ(all.size(), 1000u);
}

TEST(StoryCorpus, TokenizerHasTheSameIds) {
  for (const StorySettings& settings : {StorySettings::small(), StorySettings::large()}) {
    const StoryCorpus corpus(settings);
    const Tokenizer tokenizer = corpus.tokenizer();
    EXPECT_EQ(tokenizer.vocab_size(), corpus.vocab_size());
    EXPECT_EQ(tokenizer.bos_id(), corpus.bos());
    for (uint64_t i = 0; i < 200; ++i) {
      std::vector<int32_t> tokens = corpus.story(i).tokens;
      const std::string text = corpus.text(tokens);
      tokens.erase(tokens.begin());
      ASSERT_EQ(tokenizer.encode(text), tokens);
      ASSERT_EQ(tokenizer.decode(tokens), text);
    }
  }
}

TEST(StoryCorpus, RefusesImpossibleSettings) {
  StorySettings s = StorySettings::small();
  s.names = 161;
  EXPECT_THROW(StoryCorpus{s}, Error);
  s = StorySettings::small();
  s.kinds_of_place = 21;
  EXPECT_THROW(StoryCorpus{s}, Error);
  s = StorySettings::small();
  s.max_sentences = 0;
  EXPECT_THROW(StoryCorpus{s}, Error);
  EXPECT_THROW(StorySettings::named("medium"), Error);
  EXPECT_THROW(StoryCorpus(StorySettings::small()).text(std::vector<int32_t>{-1}), Error);
}

}  // namespace
}  // namespace tightloop
