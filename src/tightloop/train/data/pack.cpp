#include "tightloop/train/data/pack.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"

namespace tightloop {

nlohmann::json to_json(const DataCursor& cursor) {
  nlohmann::json buffer = nlohmann::json::array();
  for (const DocumentRef& ref : cursor.buffer) buffer.push_back({ref.shard, ref.begin, ref.length});
  return {{"identity", cursor.identity},          {"rows", cursor.rows},
          {"epoch", cursor.position.epoch},       {"turn", cursor.position.turn},
          {"document", cursor.position.document}, {"buffer", std::move(buffer)}};
}

DataCursor data_cursor_from_json(const nlohmann::json& json) {
  const auto number = [](const nlohmann::json& value, std::string_view field) {
    if (!value.is_number_integer())
      fail(ErrorKind::data, "data cursor: {} is {}, expected an integer", field, value.dump());
    return value.get<int64_t>();
  };
  const auto field = [&](const char* name) -> const nlohmann::json& {
    if (!json.is_object() || !json.contains(name))
      fail(ErrorKind::data, "data cursor: {} is missing", name);
    return json.at(name);
  };
  DataCursor out;
  if (!field("identity").is_string()) fail(ErrorKind::data, "data cursor: identity is no string");
  out.identity = field("identity").get<std::string>();
  out.rows = number(field("rows"), "rows");
  out.position.epoch = number(field("epoch"), "epoch");
  out.position.turn = number(field("turn"), "turn");
  out.position.document = number(field("document"), "document");
  const nlohmann::json& buffer = field("buffer");
  if (!buffer.is_array()) fail(ErrorKind::data, "data cursor: buffer is no list");
  for (const nlohmann::json& entry : buffer) {
    if (!entry.is_array() || entry.size() != 3)
      fail(ErrorKind::data, "data cursor: buffer has {}, expected [shard, begin, length]",
           entry.dump());
    const int64_t shard = number(entry[0], "buffer shard");
    const int64_t length = number(entry[2], "buffer length");
    if (shard != static_cast<int32_t>(shard) || length != static_cast<int32_t>(length))
      fail(ErrorKind::data, "data cursor: buffer has {}: out of range", entry.dump());
    out.buffer.push_back({.shard = static_cast<int32_t>(shard),
                          .length = static_cast<int32_t>(length),
                          .begin = number(entry[1], "buffer begin")});
  }
  return out;
}

std::string_view name_of(Packing packing) {
  switch (packing) {
    case Packing::best_fit:
      return "best-fit";
    case Packing::in_order:
      return "in-order";
    case Packing::contiguous:
      return "contiguous";
  }
  return "";
}

Packing default_packing(DocumentStream& stream, int64_t T) {
  constexpr int64_t kSampled{64}, kRows{8};
  if (stream.has_floor()) return Packing::in_order;
  int64_t documents = 0, tokens = 0;
  while (documents < kSampled && stream.position().epoch == 0) {
    tokens += stream.next().length;
    ++documents;
  }
  stream.seek({});
  return tokens > documents * kRows * (T + 1) ? Packing::contiguous : Packing::best_fit;
}

RowPacker::RowPacker(DocumentOptions options, int64_t T, std::optional<Packing> packing)
    : stream_(std::move(options)), T_(T), packing_(Packing::best_fit) {
  if (T < 1) fail(ErrorKind::usage, "the sequence length is {}, expected at least 1", T);
  if (stream_.total_tokens() < T + 1)
    throw Error(
        ErrorKind::data,
        fmt::format("{}: the data set has {} tokens, one row of sequence length {} needs {}",
                    stream_.options().shards[0], stream_.total_tokens(), T, T + 1))
        .with_hint("use a shorter --max-seq-len or more data");
  packing_ = packing ? *packing : default_packing(stream_, T);
  identity_ = fmt::format("{}-{}-{}", name_of(packing_), T, stream_.identity());
  if (packing_ == Packing::best_fit) buffer_.reserve(static_cast<size_t>(kMostBuffered));
}

DocumentRef RowPacker::take_contiguous(int64_t room) {
  if (buffer_.empty()) buffer_.push_back(stream_.next());
  DocumentRef& rest = buffer_[0];
  DocumentRef piece = rest;
  piece.length = static_cast<int32_t>(std::min<int64_t>(rest.length, room));
  rest.begin += piece.length;
  rest.length -= piece.length;
  if (rest.length == 0) buffer_.clear();
  return piece;
}

DocumentRef RowPacker::take(int64_t room) {
  if (packing_ == Packing::contiguous) return take_contiguous(room);
  if (packing_ == Packing::in_order) return stream_.next();
  while (std::ssize(buffer_) < kBufferDocuments)
    for (int64_t i = 0; i < kRefillDocuments; ++i) buffer_.push_back(stream_.next());
  size_t longest = buffer_.size(), shortest = 0;
  int64_t longest_length = 0;
  for (size_t i = 0; i < buffer_.size(); ++i) {
    const int64_t length = buffer_[i].length;
    if (length <= room && length > longest_length) {
      longest = i;
      longest_length = length;
    }
    if (length < buffer_[shortest].length) shortest = i;
  }
  const size_t taken = longest < buffer_.size() ? longest : shortest;
  const DocumentRef document = buffer_[taken];
  buffer_.erase(buffer_.begin() + static_cast<std::ptrdiff_t>(taken));
  return document;
}

void RowPacker::place(const DocumentRef& document,
                      int64_t length,
                      const RowView& row,
                      int64_t at) const {
  const auto to = static_cast<size_t>(at);
  const auto from = static_cast<size_t>(document.begin);
  const auto n = static_cast<size_t>(length);
  stream_.shard(document.shard).copy(document.begin, row.tokens.subspan(to, n));
  if (!has_floor()) return;
  const FloorFile& floor = stream_.floor(document.shard);
  std::ranges::copy(floor.nats().subspan(from, n), row.floor.subspan(to, n).begin());
  std::ranges::copy(floor.classes().subspan(from, n), row.skill.subspan(to, n).begin());
}

void RowPacker::next(const RowView& row, std::vector<int32_t>& starts) {
  const int64_t capacity = T_ + 1;
  TL_CHECK(std::ssize(row.tokens) == capacity);
  TL_CHECK(!has_floor() ||
           (std::ssize(row.floor) == capacity && std::ssize(row.skill) == capacity));
  for (int64_t at = 0; at < capacity;) {
    const DocumentRef document = take(capacity - at);
    const int64_t length = std::min<int64_t>(document.length, capacity - at);
    place(document, length, row, at);
    starts.push_back(static_cast<int32_t>(at));
    at += length;
    placed_tokens_ += length;
    cropped_tokens_ += document.length - length;
  }
  ++rows_;
}

void RowPacker::save(DataCursor& out) const {
  out.identity = identity_;
  out.rows = rows_;
  out.position = stream_.position();
  out.buffer.reserve(buffer_.capacity());
  out.buffer.assign(buffer_.begin(), buffer_.end());
}

void RowPacker::restore(const DataCursor& cursor) {
  if (cursor.identity != identity_)
    throw Error(
        ErrorKind::data,
        "the data cursor belongs to other shards, another data seed, sequence length or packing")
        .with_hint("resume with the --data, --data-seed and --max-seq-len of the first run");
  if (cursor.rows < 0) fail(ErrorKind::data, "data cursor: rows is {}", cursor.rows);
  const int64_t most = packing_ == Packing::best_fit     ? kMostBuffered
                       : packing_ == Packing::contiguous ? int64_t{1}
                                                         : int64_t{0};
  if (std::ssize(cursor.buffer) > most)
    fail(ErrorKind::data, "data cursor: the buffer has {} documents, expected at most {}",
         cursor.buffer.size(), most);
  for (const DocumentRef& ref : cursor.buffer) stream_.check(ref, packing_ == Packing::contiguous);
  stream_.seek(cursor.position);
  rows_ = cursor.rows;
  buffer_.assign(cursor.buffer.begin(), cursor.buffer.end());
}

void RowPacker::restart() {
  stream_.seek({});
  rows_ = 0;
  buffer_.clear();
}

}  // namespace tightloop
