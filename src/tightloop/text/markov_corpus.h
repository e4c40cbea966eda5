#pragma once

#include <cstdint>
#include <vector>

#include "tightloop/text/synthetic.h"

namespace tightloop {

/// Sizes of a random Markov chain: the next symbol depends on the last `order`.
struct MarkovSettings {
  int vocab = 32;
  int order = 2;
  int successors = 4;  // symbols with a probability above 0 after each context
};

/// A Markov chain with sparse random rows, for tests of training: a small model reaches its entropy
/// in seconds. Row s (the base-`vocab` number of the last `order` symbols, newest lowest) is drawn
/// from Philox stream s of `seed`: distinct symbols with integer weights 1..16. The first `order`
/// symbols are uniform. Skills: draw.
class MarkovCorpus {
 public:
  /// Error{usage} unless 2 <= vocab, 1 <= order, 1 <= successors <= vocab, vocab^order <= 2^20.
  MarkovCorpus(const MarkovSettings& settings, uint64_t seed);

  int64_t vocab_size() const { return settings_.vocab; }
  /// `length` symbols of Philox stream 2^40 + `stream`.
  SyntheticDocument sequence(uint64_t stream, int64_t length) const;
  /// P(symbol | context), 0 for symbols that cannot follow.
  double probability(int64_t context, int32_t symbol) const;
  /// The entropy rate sum_s pi(s) H(P(.|s)) in nats, with pi by power iteration on the lazy chain
  /// (I + P) / 2 from the uniform start, which has the same stationary distribution.
  double rate() const;

 private:
  int64_t after(int64_t context, int32_t symbol) const {
    return (context * settings_.vocab + symbol) % contexts_;
  }

  MarkovSettings settings_;
  uint64_t seed_;
  int64_t contexts_ = 1;
  std::vector<int32_t> symbols_;  // (contexts, successors)
  std::vector<int32_t> weights_;  // (contexts, successors)
  std::vector<int32_t> totals_;   // (contexts)
};

struct HmmSettings {
  int states = 8;
  int vocab = 32;
};

/// A hidden Markov model whose states are never shown. The floor is that of the best predictor, by
/// the forward filter in float64: a_t(j) ∝ E(j, x_t) sum_i a_{t-1}(i) A(i, j), with the normaliser
/// c_t = P(x_t | x_<t). Sequences start from the stationary distribution, so a window may start
/// anywhere in one, if its floor is filtered from there on. Skills: draw.
/// Rows of A and E: integer weights from Philox streams of `seed`, peaked (u^-2 law) so that there
/// is something to infer.
class HmmCorpus {
 public:
  /// Error{usage} unless 1 <= states <= 4096 and 2 <= vocab <= 65536.
  HmmCorpus(const HmmSettings& settings, uint64_t seed);

  int64_t vocab_size() const { return settings_.vocab; }
  /// `length` symbols of Philox stream 2^40 + `stream`.
  SyntheticDocument sequence(uint64_t stream, int64_t length) const;
  /// −log P(x_t | x_<t) of each symbol, for a sequence that starts from the stationary
  /// distribution.
  std::vector<float> score(const std::vector<int32_t>& symbols) const;

  double start(int state) const { return start_[static_cast<size_t>(state)]; }
  double transition(int from, int to) const {
    return transition_[static_cast<size_t>(int64_t{from} * settings_.states + to)];
  }
  double emission(int state, int symbol) const {
    return emission_[static_cast<size_t>(int64_t{state} * settings_.vocab + symbol)];
  }

 private:
  HmmSettings settings_;
  uint64_t seed_;
  std::vector<double> start_;       // (states), stationary
  std::vector<double> transition_;  // (states, states)
  std::vector<double> emission_;    // (states, vocab)
};

}  // namespace tightloop
