#include "tightloop/train/data/tokenize.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/token_shard.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

}  // namespace

std::vector<std::string> text_files(const std::vector<std::string>& inputs) {
  std::vector<std::string> out;
  for (const std::string& input : inputs) {
    if (!fs::exists(input))
      throw Error(ErrorKind::io, fmt::format("{}: no such file or folder", input))
          .with_hint(
              "expected a text file, or a folder of them: a file is one document, or many "
              "with --separator of `data tokenize`");
    if (!fs::is_directory(input)) {
      out.push_back(input);
      continue;
    }
    std::vector<std::string> below;
    try {
      for (auto it = fs::recursive_directory_iterator(input); it != fs::end(it); ++it) {
        if (it->path().filename().string().starts_with('.')) {
          if (it->is_directory()) it.disable_recursion_pending();
        } else if (it->is_regular_file()) {
          below.push_back(it->path().string());
        }
      }
    } catch (const fs::filesystem_error& error) {
      fail(ErrorKind::io, "{}: {}", input, error.code().message());
    }
    if (below.empty()) fail(ErrorKind::data, "{}: no file in this folder", input);
    std::sort(below.begin(), below.end(), natural_less);
    out.insert(out.end(), below.begin(), below.end());
  }
  return out;
}

namespace {

/// Calls visit(document) for each document of a text.
template <typename Visit>
void for_each_document(std::string_view text, const std::string& separator, Visit&& visit) {
  while (!text.empty()) {
    const size_t end = separator.empty() ? std::string_view::npos : text.find(separator);
    std::string_view document = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + separator.size());
    if (!separator.empty()) {
      while (!document.empty() && (document.front() == '\n' || document.front() == '\r'))
        document.remove_prefix(1);
      while (!document.empty() && (document.back() == '\n' || document.back() == '\r'))
        document.remove_suffix(1);
    }
    if (document.find_first_not_of(" \t\r\n") != std::string_view::npos) visit(document);
  }
}

/// Maps a file and checks that it looks like text.
MappedFile open_text(const std::string& path) {
  MappedFile file(path);
  const size_t nul = file.text().find('\0');
  if (nul != std::string_view::npos)
    fail(ErrorKind::data, "{}: byte {} is NUL: this is no text file", path, nul);
  return file;
}

/// Writes one split: collects documents, encodes them in blocks, cuts, shards.
class SplitWriter {
 public:
  SplitWriter(const Tokenizer& tokenizer,
              const TokenizeOptions& options,
              std::string folder,
              const char* name)
      : tokenizer_(tokenizer), options_(options), folder_(std::move(folder)), name_(name) {}

  /// `document` must stay valid until flush().
  void add(std::string_view document) {
    block_.push_back(document);
    block_bytes_ += std::ssize(document);
    if (block_bytes_ >= kBlockBytes || std::ssize(block_) >= kBlockDocuments) flush();
  }

  void flush() {
    const int32_t bos = *tokenizer_.bos_id();
    const int64_t most =
        options_.max_document_tokens > 0 ? options_.max_document_tokens - 1 : INT64_MAX;
    for (const std::vector<int32_t>& tokens : tokenizer_.encode_batch(block_)) {
      std::span<const int32_t> rest(tokens);
      while (!rest.empty()) {
        const auto n = static_cast<size_t>(std::min<int64_t>(most, std::ssize(rest)));
        write(bos, rest.first(n));
        rest = rest.subspan(n);
      }
    }
    result_.bytes += block_bytes_;
    block_.clear();
    block_bytes_ = 0;
  }

  TokenizeResult::Split finish() {
    flush();
    if (shard_) shard_->finish();
    shard_.reset();
    return std::move(result_);
  }

 private:
  static constexpr int64_t kBlockBytes{16 << 20};
  static constexpr int64_t kBlockDocuments{1 << 16};

  void write(int32_t bos, std::span<const int32_t> tokens) {
    if (!shard_) {
      result_.shards.push_back(fmt::format("{}_{:06}.bin", name_, result_.shards.size()));
      shard_ = std::make_unique<TokenShardWriter>(
          (fs::path(folder_) / result_.shards.back()).string(), tokenizer_.vocab_size());
    }
    shard_->append({&bos, 1});
    shard_->append(tokens);
    const int64_t length = std::ssize(tokens) + 1;
    result_.tokens += length;
    ++result_.documents;
    result_.longest = std::max(result_.longest, length);
    if (shard_->count() < options_.shard_tokens) return;
    shard_->finish();
    shard_.reset();
  }

  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  std::string folder_;
  const char* name_;
  std::vector<std::string_view> block_;
  int64_t block_bytes_ = 0;
  std::unique_ptr<TokenShardWriter> shard_;
  TokenizeResult::Split result_;
};

OrderedJson json_of(const TokenizeResult::Split& split) {
  return {{"tokens", split.tokens},
          {"documents", split.documents},
          {"bytes", split.bytes},
          {"longest", split.longest},
          {"shards", split.shards}};
}

}  // namespace

TokenizeResult tokenize_text(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  if (options.inputs.empty()) fail(ErrorKind::usage, "data tokenize: no input given");
  if (!(options.val_fraction >= 0 && options.val_fraction < 1))
    fail(ErrorKind::usage, "--val-fraction: {} is no share of the documents, expected 0 <= f < 1",
         options.val_fraction);
  if (options.max_document_tokens != 0 && options.max_document_tokens < 2)
    fail(ErrorKind::usage,
         "--max-document-tokens: {} is too few, expected at least 2, or 0 for any",
         options.max_document_tokens);
  if (options.shard_tokens < 1)
    fail(ErrorKind::usage, "data tokenize: shards of {} tokens", options.shard_tokens);
  if (!tokenizer.bos_id())
    fail(ErrorKind::data, "the tokenizer has no token that starts a document");
  if (fs::exists(options.folder) &&
      (!fs::is_directory(options.folder) || !fs::is_empty(options.folder)))
    throw Error(ErrorKind::usage, fmt::format("{} is there already", options.folder))
        .with_hint("choose another folder, or remove this one");

  const std::vector<std::string> files = text_files(options.inputs);
  std::vector<std::string> val_files;
  try {
    val_files = text_files(options.val_inputs);
  } catch (Error& e) {
    throw e.with_context("cannot read the validation text, --val");
  }
  int64_t documents = 0;
  for (const std::string& path : files)
    for_each_document(open_text(path).text(), options.separator,
                      [&](std::string_view) { ++documents; });
  if (documents == 0)
    fail(ErrorKind::data, "{}: no document: nothing but blanks in {} file{}", files[0],
         files.size(), files.size() == 1 ? "" : "s");
  int64_t train_documents = documents;
  if (val_files.empty() && options.val_fraction > 0) {
    if (documents == 1)
      throw Error(ErrorKind::data,
                  fmt::format("{}: one document only{}: nothing is left for validation", files[0],
                              options.separator.empty() ? "" : ", as --separator occurs nowhere"))
          .with_hint(
              "split it with --separator '\\n\\n' (a document for each paragraph), or give "
              "validation text with --val FILE");
    const auto val = std::llround(options.val_fraction * static_cast<double>(documents));
    train_documents -= std::clamp<int64_t>(val, 1, documents - 1);
  }

  PendingDirectory pending(options.folder);
  SplitWriter train(tokenizer, options, pending.path(), "train");
  SplitWriter val(tokenizer, options, pending.path(), "val");
  int64_t seen = 0;
  for (const std::string& path : files) {
    const MappedFile file = open_text(path);
    for_each_document(file.text(), options.separator, [&](std::string_view document) {
      (seen++ < train_documents ? train : val).add(document);
    });
    train.flush();
    val.flush();
  }
  for (const std::string& path : val_files) {
    const MappedFile file = open_text(path);
    for_each_document(file.text(), options.separator,
                      [&](std::string_view document) { val.add(document); });
    val.flush();
  }

  TokenizeResult result;
  result.files = std::ssize(files) + std::ssize(val_files);
  result.train = train.finish();
  result.val = val.finish();
  if (!val_files.empty() && result.val.documents == 0)
    fail(ErrorKind::data, "{}: no document in the validation text (--val): nothing but blanks",
         val_files[0]);
  write_file_atomically((fs::path(pending.path()) / "tokenizer.json").string(),
                        tokenizer.to_json());
  const OrderedJson json{{"format", "tightloop-dataset-1"},
                         {"files", files},
                         {"val_files", val_files},
                         {"separator", options.separator},
                         {"max_document_tokens", options.max_document_tokens},
                         {"tokenizer_hash", tokenizer.content_hash()},
                         {"vocab_size", tokenizer.vocab_size()},
                         {"train", json_of(result.train)},
                         {"val", json_of(result.val)}};
  write_file_atomically((fs::path(pending.path()) / "dataset.json").string(),
                        json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  pending.publish();
  return result;
}

}  // namespace tightloop
