#include "tightloop/text/story_corpus.h"

#include <cmath>
#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

StorySettings tiny() {
  StorySettings s;
  s.name = "tiny";
  s.names = 3;
  s.kinds_of_place = 2;
  s.places_per_kind = 1;
  s.adjectives_per_kind = 2;
  s.moods = 2;
  s.actions_per_mood = 2;
  s.objects = 2;
  s.find_verbs = 2;
  s.touch_verbs = 1;
  s.weather = 2;
  s.dayparts = 1;
  s.hours = 3;
  s.max_delta = 3;
  s.max_sentences = 2;
  return s;
}

// Every story of the tiny setting with its probability, written down by hand: no code shared with
// the corpus. Facts are drawn first, then the text is made, so this knows nothing of "late" draws.
struct Enumeration {
  std::map<std::string, double> prefix_mass;  // of every beginning of a story, by whole words
  double total = 0;
  double nats = 0;
  int64_t stories = 0;

  static double zipf(int r, int n) {
    double total = 0;
    for (int i = 1; i <= n; ++i) total += 1 / std::sqrt(i);
    return 1 / std::sqrt(r + 1) / total;
  }
  struct State {
    int hero, friend_, place, object, hour;
  };
  const std::vector<std::string> names{"Anna", "Tom", "Mary"}, places{"harbour", "forest"},
      objects{"lantern", "kite"}, hours{"one", "two", "three"}, weather{"sunny", "rainy"},
      find{"found", "bought"}, moods{"tired", "happy"};
  const std::vector<std::vector<std::string>> adjectives{{"salty", "windy"}, {"green", "leafy"}},
      actions{{"rested", "slept"}, {"sang", "danced"}};

  void finish(const std::string& text, double p) {
    ++stories;
    total += p;
    nats -= p * std::log(p);
    for (size_t i = 1; i <= text.size(); ++i)
      if (i == text.size() || text[i] == ' ') prefix_mass[text.substr(0, i)] += p;
  }
  void closing(const std::string& text, double p, const State& s) {
    finish(text + " At last " + names[s.hero] + " gave the " + objects[s.object] + " to " +
               names[s.friend_] + " and they left the " + places[s.place] + " .",
           p);
  }
  void sentences(const std::string& text, double p, const State& s, int done) {
    if (done == 2) return closing(text, p, s);
    if (done > 0) closing(text, p * 0.25, s);
    const double all = done == 0 ? 27.0 : 36.0;
    for (int a = 0; a < 2; ++a)
      sentences(text + " The " + places[s.place] + " was " + adjectives[s.place][a] + " .",
                p * 6 / all / 2, s, done + 1);
    for (int v = 0; v < 2; ++v)
      for (int o = 0; o < 2; ++o) {
        State t = s;
        t.object = o;
        sentences(text + " Then " + names[s.hero] + " " + find[v] + " a " + objects[o] + " .",
                  p * 5 / all * zipf(v, 2) * zipf(o, 2), t, done + 1);
      }
    sentences(text + " Soon " + names[s.friend_] + " admired the " + objects[s.object] + " .",
              p * 5 / all, s, done + 1);
    for (int d = 2; d <= 3; ++d) {
      State t = s;
      t.hour = (s.hour + d) % 3;
      sentences(text + " After " + hours[d - 1] + " hours it struck " + hours[t.hour] + " .",
                p * 5 / all / 2, t, done + 1);
    }
    for (int m = 0; m < 2; ++m)
      for (int a = 0; a < 2; ++a)
        sentences(text + " But " + names[s.friend_] + " was " + moods[m] + " , so " +
                      (s.friend_ == 1 ? "he " : "she ") + actions[m][a] + " .",
                  p * 6 / all * zipf(m, 2) / 2, s, done + 1);
  }
  Enumeration() {
    for (int w = 0; w < 2; ++w)
      for (int h = 0; h < 3; ++h)
        for (int f = 0; f < 3; ++f)
          for (int pl = 0; pl < 2; ++pl)
            for (int o = 0; o < 2; ++o)
              for (int c = 0; c < 3; ++c) {
                if (f == h) continue;
                const double p = zipf(w, 2) * zipf(h, 3) * zipf(f, 3) / (1 - zipf(h, 3)) *
                                 zipf(pl, 2) * zipf(o, 2) / 3;
                sentences("<|bos|> One " + weather[w] + " morning , " + names[h] + " and " +
                              names[f] + " went to the " + places[pl] + " . " +
                              (h == 1 ? "He" : "She") + " had a " + objects[o] +
                              " . The clock struck " + hours[c] + " .",
                          p, {h, f, pl, o, c}, 0);
              }
  }
};

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
  const StoryCorpus corpus(tiny());
  const Enumeration all;
  EXPECT_NEAR(all.total, 1.0, 1e-9);
  EXPECT_GT(all.stories, 10000);
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
      const auto found = all.prefix_mass.find(prefix);
      ASSERT_NE(found, all.prefix_mass.end()) << prefix;
      ASSERT_NEAR(doc.nll[t], -std::log(found->second / before), 2e-6) << prefix;
      before = found->second;
    }
    seen.insert(prefix);
  }
  EXPECT_GT(seen.size(), 1000u);
  EXPECT_NEAR(corpus.entropy().nats_per_story, all.nats, 1e-5);
}

TEST(StoryCorpus, EveryProbabilityTableSumsToOne) {
  for (const StorySettings& settings : {tiny(), StorySettings::small(), StorySettings::large()}) {
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
