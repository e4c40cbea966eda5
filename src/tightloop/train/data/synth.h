#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// A corpus folder to make.
struct SynthOptions {
  std::string folder;
  std::string corpus = "small";  // the setting: small or large
  uint64_t seed = 0;
  int64_t train_tokens = 8'000'000;  // at least; the last story is whole
  int64_t val_tokens = 262'144;
  int64_t shard_tokens = 100'000'000;  // a shard is closed by the story that reaches this
  std::optional<Tokenizer> tokenizer;  // absent: the corpus's own, one token a word
};

/// What corpus.json says: everything to make the folder again, and sums to check it by.
struct CorpusInfo {
  struct Shard {
    std::string file;
    int64_t tokens = 0;
    std::string sha256;
    std::string floor_sha256;
  };
  struct Split {
    int64_t tokens = 0;
    int64_t documents = 0;
    double floor = 0;  // mean −log p of its tokens, nats
    std::vector<Shard> shards;
  };
  std::string corpus;
  uint64_t seed = 0;
  int64_t shard_tokens = 0;
  int64_t asked_train_tokens = 0;
  int64_t asked_val_tokens = 0;
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  double nats_per_story = 0;  // analytic, the same in any tokenizer
  double rate = 0;            // analytic nats a token; for the corpus's own tokenizer, else 0
  Split train, val;
  bool reused = false;  // make_corpus() found the folder made already
};

/// Writes train_*.bin and val_*.bin with their .floor files, tokenizer.json and, last, corpus.json.
/// Same options, same bytes; the folder appears when it is whole. A folder that already holds this
/// corpus is left as it is (file sizes are checked, not contents); one that was damaged is made
/// again. Error{usage} when the folder holds anything else, Error{io}.
CorpusInfo make_corpus(const SynthOptions& options);

/// Reads <folder>/corpus.json; nothing when the folder has none. Error{data} naming the field.
std::optional<CorpusInfo> read_corpus_info(const std::string& folder);
CorpusInfo parse_corpus_info(std::string_view text, const std::string& path);

}  // namespace tightloop
