#include "tightloop/text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <unordered_map>

#include "tightloop/core/error.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/text/tokenizer_impl.h"
#include "tightloop/text/unicode.h"

namespace tightloop {
namespace {

constexpr uint8_t kText = 0, kAdded = 1, kSpecial = 2;

/// Chunks up to this length are merged by scanning; longer ones with a heap.
constexpr size_t kShortChunk = 64;
/// What an idle state may keep for long chunks.
constexpr size_t kIdleElems = size_t{1} << 20;

/// Marks and word endings that decoding sets next to the word before them.
bool attaches(std::string_view word) {
  return word == "." || word == "," || word == "!" || word == "?" || word == ";" || word == ":" ||
         word == "\n" || word.starts_with('\'') || word == "n't";
}

/// Chunk of 1 to 15 bytes, zero-filled to 16, with its length in the last byte.
void cache_key(std::string_view chunk, const char* readable_end, uint64_t& low, uint64_t& high) {
  const size_t n = chunk.size();
  if (readable_end - chunk.data() >= 16) {
    std::memcpy(&low, chunk.data(), 8);
    std::memcpy(&high, chunk.data() + 8, 8);
    if constexpr (std::endian::native == std::endian::little) {
      if (n < 8) {
        low &= (uint64_t{1} << (8 * n)) - 1;
        high = 0;
      } else {
        high &= (uint64_t{1} << (8 * (n - 8))) - 1;
      }
      high |= static_cast<uint64_t>(n) << 56;
      return;
    }
  }
  std::array<char, 16> key{};
  std::memcpy(key.data(), chunk.data(), n);
  key[15] = static_cast<char>(n);
  std::memcpy(&low, key.data(), 8);
  std::memcpy(&high, key.data() + 8, 8);
}

}  // namespace

void MergeTable::build(const std::vector<Merge>& merges) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2, merges.size() + merges.size() / 2));
  slots_.assign(slots, {});
  mask_ = slots - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = key(merge.left, merge.right);
    size_t i = hash(pair);
    while (slots_[i].rank != kNone && slots_[i].pair != pair) i = (i + 1) & mask_;
    if (slots_[i].rank == kNone)
      slots_[i] = {pair, static_cast<uint32_t>(rank), merge.result};
    else
      fail(ErrorKind::data, "merges[{}] repeats merges[{}]", rank, slots_[i].rank);
  }
}

// ---- construction ----

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::Impl::Impl(TokenizerParts&& parts)
    : word_level(parts.word_level),
      keep_gaps(parts.keep_gaps),
      nfc(parts.nfc),
      ignore_merges(parts.ignore_merges),
      attach_marks(parts.attach_marks),
      unknown(parts.unknown),
      merges(std::move(parts.merges)),
      added(std::move(parts.added)),
      splitter(parts.rule) {
  const size_t n = parts.tokens.size();
  if (n == 0) fail(ErrorKind::data, "the vocabulary is empty");
  if (n > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    fail(ErrorKind::data, "{} tokens, expected at most {}", n, std::numeric_limits<int32_t>::max());

  kind.assign(n, kText);
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (size_t i = 0; i < added.size(); ++i) {
    const AddedToken& token = added[i];
    if (token.name.empty()) fail(ErrorKind::data, "added token {} has no name", token.id);
    if (token.id < 0 || static_cast<size_t>(token.id) >= n)
      fail(ErrorKind::data, "added token \"{}\" has id {}, expected 0 to {}", token.name, token.id,
           n - 1);
    uint8_t& k = kind[static_cast<size_t>(token.id)];
    if (k != kText) fail(ErrorKind::data, "two added tokens have id {}", token.id);
    k = token.special ? kSpecial : kAdded;
    added_by_first[static_cast<uint8_t>(token.name[0])].push_back(i);
  }
  for (std::vector<size_t>& list : added_by_first)
    std::stable_sort(list.begin(), list.end(), [&](size_t a, size_t b) {
      return added[a].name.size() > added[b].name.size();
    });

  size_t total = n;
  for (const std::string& token : parts.tokens) total += token.size();
  if (total > std::numeric_limits<uint32_t>::max())
    fail(ErrorKind::data, "the vocabulary holds {} bytes, expected less than 4 GiB", total);
  bytes.reserve(total);
  offsets.reserve(n + 1);
  for (size_t i = 0; i < n; ++i) {
    offsets.push_back(static_cast<uint32_t>(bytes.size()));
    const std::string& token = parts.tokens[i];
    if (word_level && kind[i] == kText && !(attach_marks && attaches(token))) bytes += ' ';
    bytes += token;
  }
  offsets.push_back(static_cast<uint32_t>(bytes.size()));

  // Text tokens first: where an added token has the same bytes, text must find the text token.
  ids.reserve(n);
  for (const bool want_text : {true, false}) {
    for (size_t i = 0; i < n; ++i) {
      if ((kind[i] == kText) != want_text) continue;
      const auto id = static_cast<int32_t>(i);
      std::string_view key = token(id);
      if (word_level) key = key.substr(key.size() - parts.tokens[i].size());
      if (!ids.emplace(key, id).second && want_text)
        fail(ErrorKind::data, "tokens {} and {} are both \"{}\"", ids.at(key), id, parts.tokens[i]);
    }
  }

  byte_ids.fill(-1);
  if (!word_level) {
    for (int byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      const auto it = ids.find(std::string_view(&c, 1));
      if (it != ids.end() && kind[static_cast<size_t>(it->second)] == kText)
        byte_ids[static_cast<size_t>(byte)] = it->second;
    }
  }
  table.build(merges);
}

Tokenizer TokenizerBuilder::build(TokenizerParts&& parts) {
  return Tokenizer(std::make_shared<const Tokenizer::Impl>(std::move(parts)));
}

Tokenizer Tokenizer::byte_level(std::span<const std::pair<int32_t, int32_t>> merges,
                                const std::string& split,
                                const std::vector<std::string>& specials) {
  TokenizerParts parts;
  parts.rule = split;
  parts.tokens.reserve(256 + merges.size() + specials.size());
  for (int byte = 0; byte < 256; ++byte) parts.tokens.push_back({static_cast<char>(byte)});
  std::unordered_map<std::string, int32_t> ids;
  for (int32_t byte = 0; byte < 256; ++byte)
    ids.emplace(parts.tokens[static_cast<size_t>(byte)], byte);
  parts.merges.reserve(merges.size());
  for (const auto& [left, right] : merges) {
    const auto id = static_cast<int32_t>(parts.tokens.size());
    if (left < 0 || right < 0 || left >= id || right >= id)
      fail(ErrorKind::usage, "merge {} joins tokens {} and {}, expected ids below {}",
           parts.merges.size(), left, right, id);
    std::string joined =
        parts.tokens[static_cast<size_t>(left)] + parts.tokens[static_cast<size_t>(right)];
    const auto [it, is_new] = ids.emplace(joined, id);
    parts.merges.push_back({left, right, it->second});
    if (is_new) parts.tokens.push_back(std::move(joined));
  }
  for (const std::string& name : specials) {
    parts.added.push_back({name, static_cast<int32_t>(parts.tokens.size()), true});
    parts.tokens.push_back(name);
  }
  return TokenizerBuilder::build(std::move(parts));
}

Tokenizer Tokenizer::word_level(const std::vector<std::string>& words,
                                const std::vector<std::string>& specials) {
  TokenizerParts parts;
  parts.word_level = true;
  parts.keep_gaps = false;
  parts.attach_marks = true;
  const bool newline = std::find(words.begin(), words.end(), "\n") != words.end();
  parts.rule = std::string("[^\\s.,!?;:]+|[.,!?;:]") + (newline ? "|\\n" : "");
  const Splitter splitter(parts.rule);
  Splitter::State state(splitter);
  for (const std::string& word : words) {
    const auto size = static_cast<int64_t>(word.size());
    if (valid_utf8_prefix(word) != size)
      fail(ErrorKind::usage, "word {} is not valid UTF-8", parts.tokens.size());
    const Splitter::Range range = splitter.next(word, 0, state);
    if (range.begin != 0 || range.end != size || size == 0)
      fail(ErrorKind::usage, "word {} (\"{}\") is not one word: no white space and no . , ! ? ; :",
           parts.tokens.size(), word);
    parts.tokens.push_back(word);
  }
  for (const std::string& name : specials) {
    const auto id = static_cast<int32_t>(parts.tokens.size());
    parts.added.push_back({name, id, true});
    if (name == "<|unk|>") parts.unknown = id;
    parts.tokens.push_back(name);
  }
  return TokenizerBuilder::build(std::move(parts));
}

// ---- encode ----

std::unique_ptr<EncodeState> Tokenizer::Impl::take_state() const {
  {
    const std::lock_guard lock(mutex);
    if (!idle.empty()) {
      std::unique_ptr<EncodeState> state = std::move(idle.back());
      idle.pop_back();
      return state;
    }
  }
  return std::make_unique<EncodeState>(splitter);
}

void Tokenizer::Impl::give_state(std::unique_ptr<EncodeState> state) const {
  if (state->heap.capacity() > kIdleElems) {
    state->heap = {};
    state->ids = {};
    state->rank = state->next = state->previous = {};
  }
  if (state->normalised.capacity() > kIdleElems) state->normalised = {};
  const std::lock_guard lock(mutex);
  idle.push_back(std::move(state));
}

const AddedToken* Tokenizer::Impl::added_at(std::string_view text, size_t at) const {
  for (size_t i : added_by_first[static_cast<uint8_t>(text[at])])
    if (text.substr(at).starts_with(added[i].name)) return &added[i];
  return nullptr;
}

int32_t Tokenizer::Impl::byte_id(char byte) const {
  const int32_t id = byte_ids[static_cast<uint8_t>(byte)];
  if (id < 0)
    fail(ErrorKind::data, "the vocabulary has no token for byte 0x{:02x}",
         static_cast<uint8_t>(byte));
  return id;
}

void Tokenizer::Impl::merge_short(std::string_view chunk, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortChunk> id;
  std::array<uint32_t, kShortChunk> rank;  // of the pair (i, i + 1)
  std::array<int32_t, kShortChunk> result;
  size_t n = chunk.size();
  for (size_t i = 0; i < n; ++i) id[i] = byte_id(chunk[i]);
  const auto look_up = [&](size_t i) {
    const MergeTable::Slot& slot = table.find(id[i], id[i + 1]);
    rank[i] = slot.rank;
    result[i] = slot.result;
  };
  for (size_t i = 0; i + 1 < n; ++i) look_up(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (rank[i] < rank[best]) best = i;
    if (rank[best] == MergeTable::kNone) break;
    id[best] = result[best];
    --n;
    for (size_t i = best + 1; i < n; ++i) id[i] = id[i + 1];
    for (size_t i = best + 1; i + 1 < n; ++i) {
      rank[i] = rank[i + 1];
      result[i] = result[i + 1];
    }
    if (best + 1 < n) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  out.insert(out.end(), id.begin(), id.begin() + static_cast<ptrdiff_t>(n));
}

void Tokenizer::Impl::merge_long(std::string_view chunk,
                                 EncodeState& state,
                                 std::vector<int32_t>& out) const {
  constexpr uint32_t kEnd = 0xffffffffu;
  constexpr int32_t kDead = -1;
  if (chunk.size() >= kEnd)
    fail(ErrorKind::data, "a chunk of {} bytes, expected less than 4 GiB", chunk.size());
  const auto n = static_cast<uint32_t>(chunk.size());
  // A doubly linked list of tokens and a heap of the pairs that can merge, lowest rank first and
  // leftmost first among equals. A heap entry whose rank is no longer that of its pair is stale.
  auto& heap = state.heap;
  auto& id = state.ids;
  auto& rank = state.rank;
  auto& next = state.next;
  auto& previous = state.previous;
  id.resize(n);
  rank.resize(n);
  next.resize(n);
  previous.resize(n);
  heap.clear();
  const auto entry = [](uint32_t r, uint32_t at) { return static_cast<uint64_t>(r) << 32 | at; };
  for (uint32_t i = 0; i < n; ++i) {
    id[i] = byte_id(chunk[i]);
    next[i] = i + 1 < n ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
  }
  for (uint32_t i = 0; i + 1 < n; ++i) {
    rank[i] = table.find(id[i], id[i + 1]).rank;
    if (rank[i] != MergeTable::kNone) heap.push_back(entry(rank[i], i));
  }
  rank[n - 1] = MergeTable::kNone;
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto update = [&](uint32_t i) {
    rank[i] = next[i] == kEnd ? MergeTable::kNone : table.find(id[i], id[next[i]]).rank;
    if (rank[i] == MergeTable::kNone) return;
    heap.push_back(entry(rank[i], i));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto at = static_cast<uint32_t>(top);
    if (id[at] == kDead || rank[at] != static_cast<uint32_t>(top >> 32)) continue;
    const uint32_t right = next[at];
    id[at] = merges[rank[at]].result;
    id[right] = kDead;
    next[at] = next[right];
    if (next[at] != kEnd) previous[next[at]] = at;
    update(at);
    if (previous[at] != kEnd) update(previous[at]);
  }
  for (uint32_t i = 0; i != kEnd; i = next[i]) out.push_back(id[i]);
}

void Tokenizer::Impl::encode_chunk(std::string_view chunk,
                                   const char* readable_end,
                                   EncodeState& state,
                                   std::vector<int32_t>& out) const {
  if (chunk.size() == 1) return out.push_back(byte_id(chunk[0]));
  EncodeState::CacheSlot* slot = nullptr;
  uint64_t low = 0, high = 0;
  if (chunk.size() <= 15) {
    cache_key(chunk, readable_end, low, high);
    uint64_t h = low * 0x9e3779b97f4a7c15ull ^ high * 0xc2b2ae3d27d4eb4full;
    h ^= h >> 32;
    slot = &state.cache[h & (EncodeState::kCacheSlots - 1)];
    if (slot->key_low == low && slot->key_high == high) {
      out.insert(out.end(), slot->ids.begin(), slot->ids.begin() + slot->count);
      return;
    }
  }
  const size_t before = out.size();
  const auto whole = ignore_merges ? ids.find(chunk) : ids.end();
  if (whole != ids.end() && kind[static_cast<size_t>(whole->second)] == kText)
    out.push_back(whole->second);
  else if (chunk.size() <= kShortChunk)
    merge_short(chunk, out);
  else
    merge_long(chunk, state, out);
  const size_t count = out.size() - before;
  if (slot != nullptr && count <= slot->ids.size()) {
    slot->key_low = low;
    slot->key_high = high;
    slot->count = static_cast<int32_t>(count);
    std::copy_n(out.end() - static_cast<ptrdiff_t>(count), count, slot->ids.begin());
  }
}

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& out) const {
  const auto it = ids.find(word);
  if (it != ids.end() && kind[static_cast<size_t>(it->second)] == kText)
    out.push_back(it->second);
  else if (unknown)
    out.push_back(*unknown);
  else
    fail(ErrorKind::data, "the word \"{}\" is not in the vocabulary of {} words",
         word.substr(0, 100), size());
}

void Tokenizer::Impl::encode_valid(std::string_view text,
                                   EncodeState& state,
                                   std::vector<int32_t>& out) const {
  if (nfc && !is_surely_nfc(text)) {
    state.normalised.clear();
    append_nfc(text, state.normalised);
    text = state.normalised;
  }
  const char* const readable_end = text.data() + text.size();
  const auto size = static_cast<int64_t>(text.size());
  const auto chunk = [&](int64_t begin, int64_t end) {
    const auto view = text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    if (word_level)
      encode_word(view, out);
    else
      encode_chunk(view, readable_end, state, out);
  };
  for (int64_t at = 0; at < size;) {
    const Splitter::Range range = splitter.next(text, at, state.split);
    if (keep_gaps && range.begin > at) chunk(at, range.begin);
    if (range.end > range.begin) chunk(range.begin, range.end);
    at = range.end;
  }
}

void Tokenizer::Impl::encode_text(std::string_view text,
                                  EncodeState& state,
                                  std::vector<int32_t>& out) const {
  while (!text.empty()) {
    const auto valid = static_cast<size_t>(valid_utf8_prefix(text));
    if (valid > 0) encode_valid(text.substr(0, valid), state, out);
    text.remove_prefix(valid);
    if (text.empty()) break;
    if (word_level)
      fail(ErrorKind::data, "a word-level tokenizer needs valid UTF-8, got byte 0x{:02x}",
           static_cast<uint8_t>(text[0]));
    out.push_back(byte_id(text[0]));
    text.remove_prefix(1);
  }
}

void Tokenizer::encode_append(std::string_view text,
                              SpecialTokens specials,
                              std::vector<int32_t>& out) const {
  std::unique_ptr<EncodeState> state = impl_->take_state();
  size_t begin = 0;
  if (specials == SpecialTokens::recognise && !impl_->added.empty()) {
    for (size_t at = 0; at < text.size();) {
      const AddedToken* token = impl_->added_at(text, at);
      if (token == nullptr) {
        ++at;
        continue;
      }
      impl_->encode_text(text.substr(begin, at - begin), *state, out);
      out.push_back(token->id);
      begin = at += token->name.size();
    }
  }
  impl_->encode_text(text.substr(begin), *state, out);
  impl_->give_state(std::move(state));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens specials) const {
  std::vector<int32_t> out;
  out.reserve(text.size() / 4 + 8);
  encode_append(text, specials, out);
  return out;
}

std::vector<std::vector<int32_t>> Tokenizer::encode_batch(
    std::span<const std::string_view> documents, SpecialTokens specials) const {
  std::vector<std::vector<int32_t>> out(documents.size());
  constexpr int64_t kMostParts = 1024;
  const auto count = static_cast<int64_t>(documents.size());
  parallel_parts(count, std::min(count, kMostParts), [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      out[i] = encode(documents[i], specials);
  });
  return out;
}

// ---- decode and look-up ----

void Tokenizer::Impl::check_id(int32_t id) const {
  if (id < 0 || id >= size())
    fail(ErrorKind::data, "token id {}, expected 0 to {} (vocabulary of {})", id, size() - 1,
         size());
}

void Tokenizer::decode_next(std::optional<int32_t> previous, int32_t id, std::string& out) const {
  std::string_view bytes = token_bytes(id);
  if (impl_->word_level && bytes.starts_with(' ')) {
    // No blank at the start, behind a special token, or at the start of a line.
    const bool join = !previous || is_special(*previous) || token_bytes(*previous) == "\n";
    if (join) bytes.remove_prefix(1);
  }
  out += bytes;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  std::optional<int32_t> previous;
  for (int32_t id : ids) {
    decode_next(previous, id, out);
    previous = id;
  }
  return out;
}

int64_t Tokenizer::vocab_size() const {
  return impl_->size();
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  impl_->check_id(id);
  return impl_->token(id);
}

std::optional<int32_t> Tokenizer::find(std::string_view bytes) const {
  auto it = impl_->ids.find(bytes);
  if (it == impl_->ids.end() && impl_->word_level && bytes.starts_with(' '))
    it = impl_->ids.find(bytes.substr(1));
  if (it == impl_->ids.end()) return std::nullopt;
  return it->second;
}

std::vector<int32_t> Tokenizer::byte_lengths() const {
  std::vector<int32_t> lengths(static_cast<size_t>(vocab_size()), 0);
  for (size_t i = 0; i < lengths.size(); ++i)
    if (impl_->kind[i] != kSpecial)
      lengths[i] = static_cast<int32_t>(impl_->token(static_cast<int32_t>(i)).size());
  return lengths;
}

const std::vector<AddedToken>& Tokenizer::added_tokens() const {
  return impl_->added;
}

std::optional<int32_t> Tokenizer::special_id(std::string_view name) const {
  for (const AddedToken& token : impl_->added)
    if (token.name == name) return token.id;
  return std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  impl_->check_id(id);
  return impl_->kind[static_cast<size_t>(id)] == kSpecial;
}

std::optional<int32_t> Tokenizer::bos_id() const {
  const auto bos = special_id("<|bos|>");
  return bos ? bos : special_id("<|endoftext|>");
}

std::optional<int32_t> Tokenizer::eos_id() const {
  const auto eos = special_id("<|endoftext|>");
  return eos ? eos : special_id("<|bos|>");
}

bool Tokenizer::is_word_level() const {
  return impl_->word_level;
}
const std::string& Tokenizer::split_rule() const {
  return impl_->splitter.rule();
}
std::string Tokenizer::content_hash() const {
  return sha256_hex(to_json());
}

}  // namespace tightloop
