#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/text/split.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// nanochat's nine special tokens, in the order of their ids; <|bos|> is the first.
std::vector<std::string> nanochat_specials();

/// How to train a tokenizer. The defaults are nanochat's.
struct BpeTrainOptions {
  /// 256 bytes, the merges and the specials together.
  int64_t vocab_size = 32768;
  std::string split = kNanochatSplit;
  std::vector<std::string> specials = nanochat_specials();
  /// Code points of a document that count; the rest is left out.
  int64_t max_document_chars = 10'000;
  /// The document with which the total passes this many code points is the last.
  int64_t max_chars = 2'000'000'000;
};

/// Trains a byte-level BPE tokenizer: `add` documents, in order and as often as needed, then
/// `train`. Counts distinct chunks of the split rule, then merges the most frequent adjacent pair
/// (weighted by its chunks' counts; ties to the smaller left id, then right id) again and again.
/// The result does not depend on the thread count. Invalid UTF-8 bytes are passed over.
class BpeTrainer {
 public:
  /// Called every 256 merges and at the end.
  using Progress = std::function<void(int64_t merges_done, int64_t merges_wanted)>;

  /// Error{usage} when the vocabulary has no room for the bytes and specials, or a limit is not
  /// positive; Error{data} when the split rule is no regular expression.
  explicit BpeTrainer(const BpeTrainOptions& options);
  ~BpeTrainer();
  BpeTrainer(const BpeTrainer&) = delete;
  BpeTrainer& operator=(const BpeTrainer&) = delete;

  /// Counts the chunks of `documents`, on all threads. False when `max_chars` is passed: further
  /// documents would be ignored.
  bool add(std::span<const std::string_view> documents);
  /// Documents and code points counted so far.
  int64_t documents() const { return documents_; }
  int64_t chars() const { return chars_; }

  /// The tokenizer. Its vocabulary is smaller than asked for when the text runs out of pairs.
  /// Memory: about 40 bytes for each byte of distinct chunks.
  Tokenizer train(const Progress& progress = {});

 private:
  struct Counter;
  struct Counters;

  BpeTrainOptions options_;
  Splitter splitter_;
  std::unique_ptr<Counters> counters_;
  int64_t documents_ = 0;
  int64_t chars_ = 0;
};

}  // namespace tightloop
