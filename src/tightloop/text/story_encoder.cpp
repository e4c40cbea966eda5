#include "tightloop/text/story_encoder.h"

#include <algorithm>
#include <cmath>

#include "tightloop/core/error.h"

namespace tightloop {

StoryEncoder::StoryEncoder(const StoryCorpus& corpus, const Tokenizer& tokenizer)
    : corpus_(&corpus), tokenizer_(&tokenizer) {
  if (!tokenizer.bos_id())
    fail(ErrorKind::data, "the tokenizer has no token that starts a document");
  for (int32_t id = 0; id < corpus.bos(); ++id)
    tokenizer.encode_append(corpus.pieces()[static_cast<size_t>(id)], SpecialTokens::as_text,
                            piece_tokens_.emplace_back());
  piece_tokens_.push_back({*tokenizer.bos_id()});
}

SyntheticDocument StoryEncoder::story(uint64_t stream) const {
  SyntheticDocument out;
  std::string text;
  Rng rng(corpus_->seed(), stream);
  std::vector<int> alive;  // the words that go on as the chosen one did so far
  double carried = 0;      // nats that the next token has to tell about the word before
  corpus_->walk([&](const WordChoices& choices, Skill skill) {
    const int picked = choices.pick(rng);
    const auto tokens_of = [&](int i) -> const std::vector<int32_t>& {
      return piece_tokens_[static_cast<size_t>(choices.words[static_cast<size_t>(i)])];
    };
    alive.clear();
    for (int i = 0; i < std::ssize(choices.words); ++i)
      if (choices.allows(i)) alive.push_back(i);
    uint64_t mass = choices.total;
    const std::vector<int32_t>& tokens = tokens_of(picked);
    for (size_t j = 0; j < tokens.size(); ++j) {
      std::erase_if(
          alive, [&](int i) { return tokens_of(i).size() <= j || tokens_of(i)[j] != tokens[j]; });
      uint64_t left = 0;
      for (const int i : alive) left += choices.weights[static_cast<size_t>(i)];
      double nats = carried;
      if (left != mass) nats -= std::log(static_cast<double>(left) / static_cast<double>(mass));
      out.tokens.push_back(tokens[j]);
      out.nll.push_back(static_cast<float>(nats));
      out.skill.push_back(static_cast<uint8_t>(skill));
      carried = 0;
      mass = left;
    }
    const uint64_t own = choices.weights[static_cast<size_t>(picked)];
    if (own != mass) carried = -std::log(static_cast<double>(own) / static_cast<double>(mass));
    const int32_t word = choices.words[static_cast<size_t>(picked)];
    if (word != corpus_->bos()) text += corpus_->pieces()[static_cast<size_t>(word)];
    return picked;
  });
  if (tokenizer_->is_word_level()) return out;  // cuts at words by definition
  std::vector<int32_t> whole{out.tokens[0]};
  tokenizer_->encode_append(text, SpecialTokens::as_text, whole);
  if (whole != out.tokens)
    fail(
        ErrorKind::data,
        "the tokenizer does not cut \"{}\" at its words, so the entropy of its tokens is not known",
        text);
  return out;
}

}  // namespace tightloop
