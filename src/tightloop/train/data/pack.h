#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tightloop/train/data/documents.h"

namespace tightloop {

/// Everything needed to go on with the next row: a few numbers and the buffered documents.
struct DataCursor {
  std::string identity;  // of the RowPacker it belongs to
  int64_t rows = 0;      // made so far
  DocumentStream::Position position;
  std::vector<DocumentRef> buffer;  // contiguous: the rest of the current document
  bool operator==(const DataCursor&) const = default;
};

nlohmann::json to_json(const DataCursor& cursor);
/// Error{data} naming the field that is missing or of the wrong type.
DataCursor data_cursor_from_json(const nlohmann::json& json);

/// One row of T + 1 tokens, and for data with a known floor −log p (nats) and skill of each token
/// (spans are empty otherwise).
struct RowView {
  std::span<int32_t> tokens;
  std::span<float> floor;
  std::span<uint8_t> skill;
};

/// How documents become rows of T + 1 tokens without padding. But for `contiguous`, rows start with
/// BOS.
enum class Packing {
  /// nanochat's: for each placement, while the buffer holds fewer than 1,000 documents, read 128
  /// more; of those that fit into the rest of the row take the longest (the first on ties); if none
  /// fits, fill the row with the beginning of the shortest (the first on ties), drop the rest of
  /// it.
  /// Little is cropped, but documents are chosen by length: where one begins tells how it will end.
  best_fit,
  /// Documents as they come; the rest of one that does not fit is dropped. What a row says so far
  /// tells nothing about the next document, so a floor known for documents holds for rows.
  in_order,
  /// One stream, cut every T + 1 tokens: nothing is dropped, and a row may begin inside a document.
  /// For books: with a document of many rows the other two would use its first row alone.
  contiguous,
};

/// "best-fit", "in-order", "contiguous".
std::string_view name_of(Packing packing);

/// in_order for data with a floor; contiguous when the first 64 documents are longer than 8 rows on
/// average; best_fit otherwise. Leaves the stream at its start.
Packing default_packing(DocumentStream& stream, int64_t T);

/// Cuts a document stream into rows. The rows depend on the documents, T and the packing only. A
/// resumed packer makes the same rows, bit for bit. Not thread-safe.
class RowPacker {
 public:
  static constexpr int64_t kBufferDocuments{1000};
  static constexpr int64_t kRefillDocuments{128};
  /// The most documents that a DataCursor holds.
  static constexpr int64_t kMostBuffered{kBufferDocuments + kRefillDocuments};

  /// `packing` absent: default_packing. Error{usage} when T < 1, Error{data} when the shards
  /// together hold fewer than T + 1 tokens.
  RowPacker(DocumentOptions options, int64_t T, std::optional<Packing> packing = std::nullopt);

  int64_t T() const { return T_; }
  Packing packing() const { return packing_; }
  bool has_floor() const { return stream_.has_floor(); }
  const DocumentStream& documents() const { return stream_; }

  /// Makes the next row. Appends to `starts` where its documents begin, positions in 0..T; a row
  /// that goes on with a document begins with it.
  void next(const RowView& row, std::vector<int32_t>& starts);

  /// Copies the state into `out`, whose memory is reused: the second time it allocates nothing.
  void save(DataCursor& out) const;
  /// Error{data} when the cursor belongs to other data, another order, T or packing.
  void restore(const DataCursor& cursor);

  /// Back to the first row: for a validation set that every evaluation reads from its start.
  void restart();

  /// Tokens placed, and tokens dropped by cropping, since construction.
  int64_t placed_tokens() const { return placed_tokens_; }
  int64_t cropped_tokens() const { return cropped_tokens_; }

 private:
  DocumentRef take(int64_t room);
  DocumentRef take_contiguous(int64_t room);
  void place(const DocumentRef& document, int64_t length, const RowView& row, int64_t at) const;

  DocumentStream stream_;
  int64_t T_;
  Packing packing_;
  std::string identity_;
  int64_t rows_ = 0;
  std::vector<DocumentRef> buffer_;  // contiguous: the rest of the current document
  int64_t placed_tokens_ = 0;
  int64_t cropped_tokens_ = 0;
};

}  // namespace tightloop
