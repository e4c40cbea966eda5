#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tightloop/text/tokenizer.h"

namespace tightloop {

struct TokenizeOptions {
  std::vector<std::string> inputs;  // for text_files()
  /// The validation text. None: the last val_fraction of the documents, at least one; 0 for none.
  std::vector<std::string> val_inputs;
  double val_fraction = 0.01;
  std::string folder;  // to make; must not hold anything yet
  /// What stands between the documents of a file, for example "\n\n" or "<|endoftext|>"; empty: a
  /// file is a document. With a separator, line ends at both ends of a document are removed.
  /// Documents without any text are left out.
  std::string separator;
  /// Longer documents are cut into pieces of this many tokens, BOS included; 0: never. Packing
  /// drops what does not fit into a row, so a book needs a separator or this.
  int64_t max_document_tokens = 0;
  int64_t shard_tokens = 100'000'000;  // a shard is closed by the document that reaches this
};

struct TokenizeResult {
  struct Split {
    int64_t tokens = 0;               // BOS included
    int64_t documents = 0;            // pieces counted each
    int64_t bytes = 0;                // of text
    int64_t longest = 0;              // document, in tokens
    std::vector<std::string> shards;  // file names
  };
  int64_t files = 0;
  Split train, val;
};

/// The files that inputs stand for: themselves, and of folders every file that is not hidden,
/// subfolders included, in natural order (part2 before part10). Error{io} for one that does not
/// exist, Error{data} for a folder without files.
std::vector<std::string> text_files(const std::vector<std::string>& inputs);

/// Text to token shards: train_*.bin, val_*.bin, tokenizer.json and dataset.json (what was read and
/// counted) in a new folder, which appears when it is whole. Each document is BOS and its tokens;
/// documents are not split over shards. Special tokens' names in the text are ordinary text.
/// Encodes on all threads; the bytes do not depend on their number. Errors: Error{usage} for
/// impossible options, Error{io}, Error{data} for files with NUL bytes (not text), without any
/// document, or with one document only when a validation part is asked for.
TokenizeResult tokenize_text(const Tokenizer& tokenizer, const TokenizeOptions& options);

}  // namespace tightloop
