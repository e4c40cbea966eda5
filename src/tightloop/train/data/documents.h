#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tightloop/io/token_shard.h"

namespace tightloop {

/// A document's place: tokens [begin, begin + length) of a shard. The first one is BOS.
struct DocumentRef {
  int32_t shard = 0;
  int32_t length = 0;
  int64_t begin = 0;
  bool operator==(const DocumentRef&) const = default;
};

/// What is read, and in which order.
struct DocumentOptions {
  std::vector<std::string> shards;  // in file order
  int32_t bos = 0;                  // starts every document
  int64_t vocab_size = 0;
  /// Absent: file order, the same in every epoch (nanochat). Present: each epoch e has its own
  /// order, by Fisher-Yates shuffles with draws of Philox key data_seed: of the shards with stream
  /// e·2^32, then of the documents inside shard s with stream e·2^32 + 1 + s.
  std::optional<uint64_t> data_seed;
};

/// An endless stream of the documents of some shards, epoch after epoch. A document begins at each
/// BOS and ends before the next one or with its shard; tokens of a shard before its first BOS
/// belong to no document and are left out (public shards split documents at their ends).
///
/// Shards are mapped at once and scanned for BOS one at a time, when their turn comes. Errors:
/// Error{data} naming file and token for an id outside the vocabulary, shards without any document,
/// a floor file that fits no shard or is there for some shards only.
class DocumentStream {
 public:
  /// Where the stream is: the next document is the `document`-th of the `turn`-th shard of `epoch`.
  struct Position {
    int64_t epoch = 0;
    int64_t turn = 0;
    int64_t document = 0;
    bool operator==(const Position&) const = default;
  };

  explicit DocumentStream(DocumentOptions options);

  DocumentRef next();
  Position position() const { return position_; }
  /// Error{data} when there is no such position.
  void seek(const Position& position);
  /// Error{data} when `ref` is no document of these shards, or the beginning of one; or, with
  /// `inside`, no run of tokens of these shards.
  void check(const DocumentRef& ref, bool inside = false) const;

  const DocumentOptions& options() const { return options_; }
  const TokenShard& shard(int32_t i) const { return shards_[static_cast<size_t>(i)]; }
  int64_t total_tokens() const { return total_tokens_; }
  /// True when every shard has its companion of exact −log p.
  bool has_floor() const { return !floors_.empty(); }
  const FloorFile& floor(int32_t i) const { return floors_[static_cast<size_t>(i)]; }
  /// SHA-256 over the names (without folders), sizes and first 4,096 tokens of the shards, BOS and
  /// the order: equal for streams that give the same documents in the same order.
  const std::string& identity() const { return identity_; }

 private:
  void order_shards();
  void index_shard();
  int32_t current_shard() const { return shard_order_[static_cast<size_t>(position_.turn)]; }

  DocumentOptions options_;
  std::vector<TokenShard> shards_;
  std::vector<FloorFile> floors_;
  int64_t total_tokens_ = 0;
  std::string identity_;

  Position position_;
  std::vector<int32_t> shard_order_;
  int32_t indexed_ = -1;                 // the shard that starts_ is about
  std::vector<int64_t> starts_;          // of its documents, and its end
  std::vector<int32_t> document_order_;  // empty: as they stand
};

}  // namespace tightloop
