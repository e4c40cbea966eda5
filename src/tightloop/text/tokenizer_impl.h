#pragma once

// Inside of Tokenizer, shared by tokenizer.cpp (encode, decode) and tokenizer_json.cpp (files).

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tightloop/text/split.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// Tokens `left` and `right` side by side become `result`. The earlier merge wins.
struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;
};

/// Everything a tokenizer file says, checked and in our terms.
struct TokenizerParts {
  bool word_level = false;
  std::string rule;
  /// What lies between matches of the rule is a chunk too ("Isolated"), or is dropped.
  bool keep_gaps = true;
  bool nfc = false;
  /// A chunk that is a token is that token, whatever the merges say.
  bool ignore_merges = false;
  /// Word-level decoding attaches marks to the word before (WordPiece clean-up), or always blanks.
  bool attach_marks = false;
  std::optional<int32_t> unknown;
  /// Per id: the bytes of a BPE token, a word, or an added token's name. Distinct within each kind.
  std::vector<std::string> tokens;
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
};

/// Open-addressing map from a pair of ids to the merge it starts.
class MergeTable {
 public:
  static constexpr uint32_t kNone = 0xffffffffu;
  struct Slot {
    uint64_t pair = ~uint64_t{0};  // no pair of ids has this value: ids are not negative
    uint32_t rank = kNone;
    int32_t result = 0;
  };

  void build(const std::vector<Merge>& merges);
  /// The slot of the pair, or one whose rank is kNone.
  const Slot& find(int32_t left, int32_t right) const {
    const uint64_t pair = key(left, right);
    for (size_t i = hash(pair);; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.pair == pair || slot.rank == kNone) return slot;
    }
  }

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t hash(uint64_t pair) const {
    pair *= 0x9e3779b97f4a7c15ull;
    return static_cast<size_t>(pair ^ pair >> 32) & mask_;
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

/// What one call of `encode` works with; kept for the next call, so that the chunk cache stays
/// warm.
struct EncodeState {
  explicit EncodeState(const Splitter& splitter) : split(splitter), cache(kCacheSlots) {}

  /// A chunk of at most 15 bytes and its at most three ids. Byte 15 of the key is the length.
  struct CacheSlot {
    uint64_t key_low = 0, key_high = 0;
    std::array<int32_t, 3> ids{};
    int32_t count = 0;
  };
  static constexpr size_t kCacheSlots = size_t{1} << 15;

  Splitter::State split;
  std::vector<CacheSlot> cache;
  std::string normalised;
  // Long chunks only:
  std::vector<uint64_t> heap;  // rank << 32 | position
  std::vector<int32_t> ids;
  std::vector<uint32_t> rank, next, previous;
};

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts&& parts);

  std::string_view token(int32_t id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes).substr(offsets[i], offsets[i + 1] - offsets[i]);
  }
  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  void check_id(int32_t id) const;

  void encode_text(std::string_view text, EncodeState& state, std::vector<int32_t>& out) const;
  void encode_valid(std::string_view text, EncodeState& state, std::vector<int32_t>& out) const;
  void encode_word(std::string_view word, std::vector<int32_t>& out) const;
  void encode_chunk(std::string_view chunk,
                    const char* readable_end,
                    EncodeState& state,
                    std::vector<int32_t>& out) const;
  void merge_short(std::string_view chunk, std::vector<int32_t>& out) const;
  void merge_long(std::string_view chunk, EncodeState& state, std::vector<int32_t>& out) const;
  int32_t byte_id(char byte) const;
  /// The added token whose name `text` starts with at `at`, the longest when several fit.
  const AddedToken* added_at(std::string_view text, size_t at) const;

  std::unique_ptr<EncodeState> take_state() const;
  void give_state(std::unique_ptr<EncodeState> state) const;

  bool word_level, keep_gaps, nfc, ignore_merges, attach_marks;
  std::optional<int32_t> unknown;
  std::string bytes;              // all tokens, one after the other
  std::vector<uint32_t> offsets;  // size() + 1
  std::unordered_map<std::string_view, int32_t> ids;
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  std::vector<uint8_t> kind;                            // per id: 0 text, 1 added, 2 special
  std::array<std::vector<size_t>, 256> added_by_first;  // longest name first
  std::array<int32_t, 256> byte_ids;                    // -1: no such token
  MergeTable table;
  Splitter splitter;

  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<EncodeState>> idle;
};

/// The one way to make a Tokenizer. Checks that ids are dense, names distinct and merges sound.
class TokenizerBuilder {
 public:
  static Tokenizer build(TokenizerParts&& parts);
};

}  // namespace tightloop
