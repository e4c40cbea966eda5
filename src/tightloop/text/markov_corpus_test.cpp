#include "tightloop/text/markov_corpus.h"

#include <cmath>
#include <functional>
#include <numeric>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

TEST(MarkovCorpus, RowsAreDistributionsAndTheFloorIsTheirs) {
  const MarkovCorpus corpus({.vocab = 6, .order = 2, .successors = 3}, 5);
  for (int64_t s = 0; s < 36; ++s) {
    double sum = 0;
    int positive = 0;
    for (int32_t x = 0; x < 6; ++x) {
      sum += corpus.probability(s, x);
      positive += corpus.probability(s, x) > 0;
    }
    EXPECT_NEAR(sum, 1.0, 1e-12);
    EXPECT_EQ(positive, 3);
  }
  const SyntheticDocument doc = corpus.sequence(0, 5000);
  EXPECT_NEAR(doc.nll[0], std::log(6.0), 1e-6);
  for (size_t t = 2; t < doc.tokens.size(); ++t)
    ASSERT_NEAR(
        doc.nll[t],
        -std::log(corpus.probability(doc.tokens[t - 2] * 6 + doc.tokens[t - 1], doc.tokens[t])),
        1e-6);
  EXPECT_EQ(corpus.sequence(0, 5000).tokens, doc.tokens);
  EXPECT_NE(corpus.sequence(1, 5000).tokens, doc.tokens);
}

TEST(MarkovCorpus, LongRunsApproachTheRate) {
  const MarkovCorpus corpus({.vocab = 32, .order = 2, .successors = 4}, 1);
  const double rate = corpus.rate();
  const SyntheticDocument doc = corpus.sequence(0, 200000);
  const double mean = std::accumulate(doc.nll.begin(), doc.nll.end(), 0.0) / 200000;
  EXPECT_NEAR(mean, rate, 0.01);
  EXPECT_GT(rate, 0.5);
  EXPECT_LT(rate, std::log(4.0));
}

TEST(MarkovCorpus, RateOfAPeriodicChain) {
  // One successor each: nothing is random after the start.
  EXPECT_NEAR(MarkovCorpus({.vocab = 7, .order = 1, .successors = 1}, 3).rate(), 0.0, 1e-12);
}

TEST(HmmCorpus, FilterMatchesSumOverAllPaths) {
  const HmmCorpus corpus({.states = 3, .vocab = 4}, 2);
  const SyntheticDocument doc = corpus.sequence(7, 7);
  // P(x_0..x_t) as a sum over all 3^(t+1) state paths.
  double before = 1.0;
  for (size_t t = 0; t < doc.tokens.size(); ++t) {
    double total = 0;
    const std::function<void(size_t, int, double)> visit = [&](size_t i, int state, double p) {
      p *= corpus.emission(state, doc.tokens[i]);
      if (i == t) {
        total += p;
        return;
      }
      for (int next = 0; next < 3; ++next) visit(i + 1, next, p * corpus.transition(state, next));
    };
    for (int state = 0; state < 3; ++state) visit(0, state, corpus.start(state));
    ASSERT_NEAR(doc.nll[t], -std::log(total / before), 1e-6);
    before = total;
  }
}

TEST(HmmCorpus, SamplesFollowTheModel) {
  const HmmCorpus corpus({.states = 8, .vocab = 16}, 4);
  double start_sum = 0;
  for (int s = 0; s < 8; ++s) {
    double next = 0;
    for (int i = 0; i < 8; ++i) next += corpus.start(i) * corpus.transition(i, s);
    EXPECT_NEAR(next, corpus.start(s), 1e-10);
    start_sum += corpus.start(s);
  }
  EXPECT_NEAR(start_sum, 1.0, 1e-10);
  const SyntheticDocument doc = corpus.sequence(0, 100000);
  std::vector<double> counts(16, 0.0);
  for (const int32_t x : doc.tokens) counts[static_cast<size_t>(x)] += 1e-5;
  double unigram = 0;
  for (int x = 0; x < 16; ++x) {
    double p = 0;
    for (int s = 0; s < 8; ++s) p += corpus.start(s) * corpus.emission(s, x);
    EXPECT_NEAR(counts[static_cast<size_t>(x)], p, 0.02);
    unigram -= p * std::log(p);
  }
  const double mean = std::accumulate(doc.nll.begin(), doc.nll.end(), 0.0) / 100000;
  EXPECT_LT(mean, unigram - 0.01);  // the past helps
}

TEST(MarkovAndHmm, Errors) {
  EXPECT_THROW(MarkovCorpus({.vocab = 1}, 0), Error);
  EXPECT_THROW(MarkovCorpus({.vocab = 64, .order = 4}, 0), Error);
  EXPECT_THROW(MarkovCorpus({.vocab = 4, .order = 1, .successors = 5}, 0), Error);
  EXPECT_THROW(HmmCorpus({.states = 0}, 0), Error);
  EXPECT_THROW(HmmCorpus({.states = 2, .vocab = 4}, 0).score({4}), Error);
}

}  // namespace
}  // namespace tightloop
