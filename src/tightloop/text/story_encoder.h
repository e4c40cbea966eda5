#pragma once

#include <cstdint>
#include <vector>

#include "tightloop/text/story_corpus.h"
#include "tightloop/text/synthetic.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// Stories in the tokens of any tokenizer, −log p still exact for every token.
///
/// At each word the grammar knows the distribution of the next word. With mass(s) the sum over the
/// words whose tokens begin with s, P(next token = t | s said of this word) = mass(s t) / mass(s).
/// Where the chosen word ends but a longer one would go on ("The", "Then"), the next token also
/// shows that it ended: P(word) / mass(word) times what follows. This needs words to be split alike
/// alone and in the text, which holds for every split rule that cuts at blanks and marks; it is
/// checked on each story. The skill of a token is that of its word. Several threads may use one
/// encoder.
class StoryEncoder {
 public:
  /// Both must outlive the encoder. Error{data} when the tokenizer has no BOS or cannot express a
  /// word of the corpus.
  StoryEncoder(const StoryCorpus& corpus, const Tokenizer& tokenizer);

  /// Story `stream`, the same text as corpus.story(stream). Error{data} when the tokenizer does not
  /// cut the text at the words.
  SyntheticDocument story(uint64_t stream) const;

 private:
  const StoryCorpus* corpus_;
  const Tokenizer* tokenizer_;
  std::vector<std::vector<int32_t>> piece_tokens_;  // by word id
};

}  // namespace tightloop
