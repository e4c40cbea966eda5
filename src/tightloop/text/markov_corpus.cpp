#include "tightloop/text/markov_corpus.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"

namespace tightloop {
namespace {

constexpr uint64_t kSequenceStream{uint64_t{1} << 40};

/// The place that a uniform draw picks from a distribution.
int32_t draw(std::span<const double> p, Rng& rng) {
  double left = rng.uniform();
  size_t last = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] <= 0) continue;
    last = i;
    if (left < p[i]) break;
    left -= p[i];
  }
  return static_cast<int32_t>(last);
}

/// pi of the lazy chain (I + P) / 2: it converges even where P is periodic.
/// `step(from, to)` adds P^T from to `to`, which starts at zero.
template <typename Step>
std::vector<double> stationary(size_t states, Step&& step) {
  std::vector<double> pi(states, 1.0 / static_cast<double>(states)), next(states);
  for (int i = 0; i < 10000; ++i) {
    std::fill(next.begin(), next.end(), 0.0);
    step(pi, next);
    double change = 0;
    for (size_t s = 0; s < states; ++s) {
      change += std::abs(next[s] - pi[s]);
      pi[s] = 0.5 * (pi[s] + next[s]);
    }
    if (change < 1e-14) break;
  }
  return pi;
}

}  // namespace

MarkovCorpus::MarkovCorpus(const MarkovSettings& settings, uint64_t seed)
    : settings_(settings), seed_(seed) {
  if (settings.vocab < 2 || settings.order < 1 || settings.successors < 1 ||
      settings.successors > settings.vocab)
    fail(ErrorKind::usage, "Markov corpus: vocabulary {}, order {}, {} successors", settings.vocab,
         settings.order, settings.successors);
  for (int i = 0; i < settings.order; ++i) {
    contexts_ *= settings.vocab;
    if (contexts_ > int64_t{1} << 20)
      fail(ErrorKind::usage, "Markov corpus: {}^{} contexts, expected at most 2^20", settings.vocab,
           settings.order);
  }
  std::vector<int32_t> deck(static_cast<size_t>(settings.vocab));
  for (int64_t s = 0; s < contexts_; ++s) {
    Rng rng(seed, static_cast<uint64_t>(s));
    for (size_t i = 0; i < deck.size(); ++i) deck[i] = static_cast<int32_t>(i);
    int32_t total = 0;
    for (int i = 0; i < settings.successors; ++i) {
      const auto place = static_cast<size_t>(i);
      std::swap(deck[place], deck[place + rng.below(deck.size() - place)]);
      symbols_.push_back(deck[place]);
      weights_.push_back(static_cast<int32_t>(1 + rng.below(16)));
      total += weights_.back();
    }
    totals_.push_back(total);
  }
}

double MarkovCorpus::probability(int64_t context, int32_t symbol) const {
  const int64_t row = context * settings_.successors;
  for (int64_t i = row; i < row + settings_.successors; ++i)
    if (symbols_[static_cast<size_t>(i)] == symbol)
      return static_cast<double>(weights_[static_cast<size_t>(i)]) /
             totals_[static_cast<size_t>(context)];
  return 0;
}

SyntheticDocument MarkovCorpus::sequence(uint64_t stream, int64_t length) const {
  SyntheticDocument out;
  Rng rng(seed_, kSequenceStream + stream);
  int64_t context = 0;
  for (int64_t t = 0; t < length; ++t) {
    int32_t symbol = 0;
    double p = 1.0 / settings_.vocab;
    if (t < settings_.order) {
      symbol = static_cast<int32_t>(rng.below(static_cast<uint64_t>(settings_.vocab)));
    } else {
      const auto total = static_cast<uint64_t>(totals_[static_cast<size_t>(context)]);
      auto left = static_cast<int64_t>(rng.below(total));
      auto i = static_cast<size_t>(context * settings_.successors);
      for (; left >= weights_[i]; ++i) left -= weights_[i];
      symbol = symbols_[i];
      p = static_cast<double>(weights_[i]) / static_cast<double>(total);
    }
    out.tokens.push_back(symbol);
    out.nll.push_back(static_cast<float>(-std::log(p)));
    out.skill.push_back(static_cast<uint8_t>(Skill::draw));
    context = after(context, symbol);
  }
  return out;
}

double MarkovCorpus::rate() const {
  const auto each = [&](int64_t s, auto&& visit) {
    for (int64_t i = s * settings_.successors; i < (s + 1) * settings_.successors; ++i)
      visit(
          symbols_[static_cast<size_t>(i)],
          static_cast<double>(weights_[static_cast<size_t>(i)]) / totals_[static_cast<size_t>(s)]);
  };
  const std::vector<double> pi = stationary(
      static_cast<size_t>(contexts_),
      [&](const std::vector<double>& from, std::vector<double>& to) {
        for (int64_t s = 0; s < contexts_; ++s)
          each(s, [&](int32_t symbol, double p) {
            to[static_cast<size_t>(after(s, symbol))] += from[static_cast<size_t>(s)] * p;
          });
      });
  double nats = 0;
  for (int64_t s = 0; s < contexts_; ++s)
    each(s, [&](int32_t, double p) { nats -= pi[static_cast<size_t>(s)] * p * std::log(p); });
  return nats;
}

HmmCorpus::HmmCorpus(const HmmSettings& settings, uint64_t seed)
    : settings_(settings), seed_(seed) {
  if (settings.states < 1 || settings.states > 4096 || settings.vocab < 2 || settings.vocab > 65536)
    fail(ErrorKind::usage, "HMM corpus: {} states, vocabulary {}", settings.states, settings.vocab);
  const auto S = static_cast<size_t>(settings.states);
  const auto V = static_cast<size_t>(settings.vocab);
  const auto row = [&](uint64_t stream, size_t n, std::vector<double>& out) {
    Rng rng(seed, stream);
    double total = 0;
    const size_t begin = out.size();
    for (size_t i = 0; i < n; ++i) {
      const double u = 0.02 + rng.uniform();
      out.push_back(std::round(1024 / (u * u)));
      total += out.back();
    }
    for (size_t i = begin; i < out.size(); ++i) out[i] /= total;
  };
  for (size_t s = 0; s < S; ++s) {
    row(2 * s, S, transition_);
    row(2 * s + 1, V, emission_);
  }
  start_ = stationary(S, [&](const std::vector<double>& from, std::vector<double>& to) {
    for (size_t i = 0; i < S; ++i)
      for (size_t j = 0; j < S; ++j) to[j] += from[i] * transition_[i * S + j];
  });
}

SyntheticDocument HmmCorpus::sequence(uint64_t stream, int64_t length) const {
  SyntheticDocument out;
  Rng rng(seed_, kSequenceStream + stream);
  const auto S = static_cast<size_t>(settings_.states);
  const auto V = static_cast<size_t>(settings_.vocab);
  int32_t state = draw(start_, rng);
  for (int64_t t = 0; t < length; ++t) {
    const auto s = static_cast<size_t>(state);
    out.tokens.push_back(draw(std::span(emission_).subspan(s * V, V), rng));
    state = draw(std::span(transition_).subspan(s * S, S), rng);
  }
  out.nll = score(out.tokens);
  out.skill.assign(out.tokens.size(), static_cast<uint8_t>(Skill::draw));
  return out;
}

std::vector<float> HmmCorpus::score(const std::vector<int32_t>& symbols) const {
  const auto S = static_cast<size_t>(settings_.states);
  const auto V = static_cast<size_t>(settings_.vocab);
  std::vector<float> out;
  std::vector<double> prior = start_, posterior(S);
  for (const int32_t symbol : symbols) {
    if (symbol < 0 || symbol >= settings_.vocab)
      fail(ErrorKind::data, "HMM corpus: symbol {}, expected 0..{}", symbol, settings_.vocab - 1);
    double c = 0;
    for (size_t j = 0; j < S; ++j) {
      posterior[j] = prior[j] * emission_[j * V + static_cast<size_t>(symbol)];
      c += posterior[j];
    }
    out.push_back(static_cast<float>(-std::log(c)));
    std::fill(prior.begin(), prior.end(), 0.0);
    for (size_t i = 0; i < S; ++i)
      for (size_t j = 0; j < S; ++j) prior[j] += posterior[i] / c * transition_[i * S + j];
  }
  return out;
}

}  // namespace tightloop
