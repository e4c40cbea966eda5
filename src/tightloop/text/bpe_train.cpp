#include "tightloop/text/bpe_train.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <queue>
#include <unordered_map>
#include <utility>

#include "tightloop/core/error.h"
#include "tightloop/core/threads.h"
#include "tightloop/text/unicode.h"

namespace tightloop {
namespace {

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kMix = 0x9e3779b97f4a7c15ull;
  uint64_t h = bytes.size() * kMix;
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t n = std::min<size_t>(8, bytes.size());
    std::memcpy(&word, bytes.data(), n);
    h = (h ^ word) * kMix;
    h ^= h >> 32;
    bytes.remove_prefix(n);
  }
  return h;
}

/// How often each distinct chunk occurs. Open addressing; the bytes lie in one arena.
class ChunkCounts {
 public:
  struct Entry {
    uint64_t hash = 0;
    uint64_t begin = 0;
    uint32_t size = 0;
    int64_t count = 0;
  };

  ChunkCounts() : slots_(1 << 12, kFree) {}

  void add(std::string_view chunk, int64_t count) { add(chunk, hash_bytes(chunk), count); }
  void add_all(const ChunkCounts& other) {
    for (const Entry& entry : other.entries_) add(other.chunk(entry), entry.hash, entry.count);
  }
  const std::vector<Entry>& entries() const { return entries_; }
  std::string_view chunk(const Entry& entry) const {
    return std::string_view(bytes_).substr(entry.begin, entry.size);
  }

 private:
  static constexpr uint32_t kFree = 0xffffffffu;

  void add(std::string_view chunk, uint64_t hash, int64_t count) {
    size_t mask = slots_.size() - 1;
    size_t i = hash & mask;
    for (; slots_[i] != kFree; i = (i + 1) & mask) {
      Entry& entry = entries_[slots_[i]];
      if (entry.hash == hash && this->chunk(entry) == chunk) {
        entry.count += count;
        return;
      }
    }
    slots_[i] = static_cast<uint32_t>(entries_.size());
    entries_.push_back({hash, bytes_.size(), static_cast<uint32_t>(chunk.size()), count});
    bytes_ += chunk;
    if (entries_.size() >= kFree) fail(ErrorKind::oom, "more than {} distinct chunks", kFree);
    if (entries_.size() * 2 < slots_.size()) return;
    slots_.assign(slots_.size() * 2, kFree);
    mask = slots_.size() - 1;
    for (size_t e = 0; e < entries_.size(); ++e) {
      size_t at = entries_[e].hash & mask;
      while (slots_[at] != kFree) at = (at + 1) & mask;
      slots_[at] = static_cast<uint32_t>(e);
    }
  }

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;
};

/// Pairs of adjacent tokens by a dense index, found through open addressing.
class PairTable {
 public:
  struct Pair {
    int32_t left = 0;
    int32_t right = 0;
    int64_t count = 0;
    bool merged = false;            // is a merge already
    bool grown = false;             // by the merge under way
    std::vector<uint32_t> words{};  // that have or once had the pair, perhaps twice
  };

  PairTable() : slots_(1 << 16, kFree) {}

  uint32_t index(int32_t left, int32_t right) {
    size_t mask = slots_.size() - 1;
    size_t i = hash(left, right) & mask;
    for (; slots_[i] != kFree; i = (i + 1) & mask) {
      const Pair& pair = pairs[slots_[i]];
      if (pair.left == left && pair.right == right) return slots_[i];
    }
    const auto made = static_cast<uint32_t>(pairs.size());
    slots_[i] = made;
    pairs.push_back({left, right});
    if (pairs.size() * 2 >= slots_.size()) {
      slots_.assign(slots_.size() * 2, kFree);
      mask = slots_.size() - 1;
      for (size_t p = 0; p < pairs.size(); ++p) {
        size_t at = hash(pairs[p].left, pairs[p].right) & mask;
        while (slots_[at] != kFree) at = (at + 1) & mask;
        slots_[at] = static_cast<uint32_t>(p);
      }
    }
    return made;
  }

  std::vector<Pair> pairs;

 private:
  static constexpr uint32_t kFree = 0xffffffffu;
  static size_t hash(int32_t left, int32_t right) {
    uint64_t h =
        static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    h *= 0x9e3779b97f4a7c15ull;
    return static_cast<size_t>(h ^ h >> 32);
  }

  std::vector<uint32_t> slots_;
};

/// A pair as it was when queued. Its count is stale when it is no longer the pair's.
struct Candidate {
  int64_t count = 0;
  int32_t left = 0;
  int32_t right = 0;
  uint32_t pair = 0;

  /// Lower priority: a smaller count, then a larger pair.
  bool operator<(const Candidate& other) const {
    if (count != other.count) return count < other.count;
    return std::pair(left, right) > std::pair(other.left, other.right);
  }
};

/// Distinct chunks as token sequences, and the bookkeeping of merging them.
class MergeLoop {
 public:
  explicit MergeLoop(const ChunkCounts& counts) {
    for (const ChunkCounts::Entry& entry : counts.entries()) {
      if (entry.size < 2) continue;
      words_.push_back({tokens_.size(), entry.size, entry.count});
      for (char c : counts.chunk(entry)) tokens_.push_back(static_cast<uint8_t>(c));
    }
    if (words_.size() > std::numeric_limits<uint32_t>::max())
      fail(ErrorKind::oom, "{} distinct chunks, expected less than 2^32", words_.size());
    for (size_t w = 0; w < words_.size(); ++w) {
      const int32_t* t = &tokens_[words_[w].begin];
      for (uint32_t i = 0; i + 1 < words_[w].size; ++i)
        change(t[i], t[i + 1], static_cast<uint32_t>(w), +1);
    }
    queue_grown();
  }

  /// The index of the most frequent pair; none when no pair remains.
  std::optional<uint32_t> best() {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const int64_t count = table_.pairs[top.pair].count;
      if (count == top.count) return top.pair;
      // Counts that fell were not queued again: this is the time. Those that rose were.
      if (count > 0 && count < top.count) queue_.push({count, top.left, top.right, top.pair});
    }
    return std::nullopt;
  }

  PairTable::Pair& pair(uint32_t index) { return table_.pairs[index]; }

  /// Replaces the pair by `result` everywhere, left to right.
  void merge(uint32_t index, int32_t result) {
    const int32_t left = table_.pairs[index].left, right = table_.pairs[index].right;
    const std::vector<uint32_t> where = std::exchange(table_.pairs[index].words, {});
    for (uint32_t w : where) merge_word(w, left, right, result);
    queue_grown();
  }

 private:
  struct Word {
    size_t begin = 0;
    uint32_t size = 0;
    int64_t count = 0;
  };

  void change(int32_t left, int32_t right, uint32_t w, int64_t sign) {
    const uint32_t i = table_.index(left, right);
    PairTable::Pair& p = table_.pairs[i];
    p.count += sign * words_[w].count;
    if (sign < 0) return;
    if (p.words.empty() || p.words.back() != w) p.words.push_back(w);
    if (!p.grown) {
      p.grown = true;
      grown_.push_back(i);
    }
  }

  void merge_word(uint32_t w, int32_t left, int32_t right, int32_t result) {
    int32_t* const t = &tokens_[words_[w].begin];
    const uint32_t size = words_[w].size;
    uint32_t out = 0;
    for (uint32_t i = 0; i < size;) {
      if (i + 1 < size && t[i] == left && t[i + 1] == right) {
        if (out > 0) {
          change(t[out - 1], left, w, -1);
          change(t[out - 1], result, w, +1);
        }
        change(left, right, w, -1);
        if (i + 2 < size) {
          change(right, t[i + 2], w, -1);
          change(result, t[i + 2], w, +1);
        }
        t[out++] = result;
        i += 2;
      } else {
        t[out++] = t[i++];
      }
    }
    words_[w].size = out;
  }

  void queue_grown() {
    for (uint32_t i : grown_) {
      PairTable::Pair& p = table_.pairs[i];
      p.grown = false;
      if (p.count > 0) queue_.push({p.count, p.left, p.right, i});
    }
    grown_.clear();
  }

  std::vector<int32_t> tokens_;
  std::vector<Word> words_;
  PairTable table_;
  std::vector<uint32_t> grown_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

struct BpeTrainer::Counter {
  explicit Counter(const Splitter& splitter) : split(splitter) {}

  Splitter::State split;
  ChunkCounts chunks;
};

/// One counter per thread that ever counted; sums do not depend on who counted what.
struct BpeTrainer::Counters {
  std::mutex mutex;
  std::vector<std::unique_ptr<Counter>> idle;

  std::unique_ptr<Counter> take(const Splitter& splitter) {
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        std::unique_ptr<Counter> counter = std::move(idle.back());
        idle.pop_back();
        return counter;
      }
    }
    return std::make_unique<Counter>(splitter);
  }
  void give(std::unique_ptr<Counter> counter) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(counter));
  }
};

std::vector<std::string> nanochat_specials() {
  return {"<|bos|>",           "<|user_start|>",   "<|user_end|>",   "<|assistant_start|>",
          "<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>",
          "<|output_end|>"};
}

BpeTrainer::BpeTrainer(const BpeTrainOptions& options)
    : options_(options), splitter_(options.split), counters_(std::make_unique<Counters>()) {
  const auto fixed = static_cast<int64_t>(256 + options.specials.size());
  if (options.vocab_size < fixed)
    fail(ErrorKind::usage, "vocabulary of {}, expected at least {} (256 bytes and {} specials)",
         options.vocab_size, fixed, options.specials.size());
  if (options.vocab_size > std::numeric_limits<int32_t>::max())
    fail(ErrorKind::usage, "vocabulary of {}, expected at most {}", options.vocab_size,
         std::numeric_limits<int32_t>::max());
  if (options.max_document_chars < 1 || options.max_chars < 1)
    fail(ErrorKind::usage, "character limits {} and {} must be positive",
         options.max_document_chars, options.max_chars);
}

BpeTrainer::~BpeTrainer() = default;

bool BpeTrainer::add(std::span<const std::string_view> documents) {
  const auto given = static_cast<int64_t>(documents.size());
  std::vector<std::string_view> cropped(documents.size());
  std::vector<int64_t> chars(documents.size());
  parallel_for(given, 16, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      cropped[i] = first_code_points(documents[i], options_.max_document_chars);
      chars[i] = count_code_points(cropped[i]);
    }
  });
  int64_t used = 0;
  while (used < given && chars_ <= options_.max_chars) chars_ += chars[static_cast<size_t>(used++)];
  documents_ += used;

  constexpr int64_t kParts = 256;
  parallel_parts(used, std::min(used, kParts), [&](int64_t begin, int64_t end, int) {
    std::unique_ptr<Counter> counter = counters_->take(splitter_);
    for (int64_t i = begin; i < end; ++i) {
      std::string_view text = cropped[static_cast<size_t>(i)];
      while (!text.empty()) {
        const int64_t valid = valid_utf8_prefix(text);
        for (int64_t at = 0; at < valid;) {
          const auto range =
              splitter_.next(text.substr(0, static_cast<size_t>(valid)), at, counter->split);
          if (range.begin > at)  // what the rule does not match is a chunk of its own
            counter->chunks.add(
                text.substr(static_cast<size_t>(at), static_cast<size_t>(range.begin - at)), 1);
          if (range.end > range.begin)
            counter->chunks.add(text.substr(static_cast<size_t>(range.begin),
                                            static_cast<size_t>(range.end - range.begin)),
                                1);
          at = range.end;
        }
        text.remove_prefix(std::min(text.size(), static_cast<size_t>(valid) + 1));
      }
    }
    counters_->give(std::move(counter));
  });
  return chars_ <= options_.max_chars;
}

Tokenizer BpeTrainer::train(const Progress& progress) {
  ChunkCounts all;
  for (const std::unique_ptr<Counter>& counter : counters_->idle) all.add_all(counter->chunks);
  MergeLoop loop(all);

  const int64_t wanted = options_.vocab_size - 256 - static_cast<int64_t>(options_.specials.size());
  constexpr int64_t kReportEvery = 256;
  std::vector<std::string> tokens;
  std::unordered_map<std::string, int32_t> ids;
  for (int32_t byte = 0; byte < 256; ++byte) {
    tokens.push_back({static_cast<char>(byte)});
    ids.emplace(tokens.back(), byte);
  }
  std::vector<std::pair<int32_t, int32_t>> merges;
  while (static_cast<int64_t>(tokens.size()) - 256 < wanted) {
    const std::optional<uint32_t> best = loop.best();
    if (!best) break;
    PairTable::Pair& pair = loop.pair(*best);
    std::string joined =
        tokens[static_cast<size_t>(pair.left)] + tokens[static_cast<size_t>(pair.right)];
    // Another way to make bytes that are a token already makes that token.
    const auto [it, is_new] = ids.emplace(joined, static_cast<int32_t>(tokens.size()));
    if (is_new) tokens.push_back(std::move(joined));
    if (!pair.merged) merges.push_back({pair.left, pair.right});
    pair.merged = true;
    loop.merge(*best, it->second);
    const auto done = static_cast<int64_t>(tokens.size()) - 256;
    if (progress && done % kReportEvery == 0) progress(done, wanted);
  }
  if (progress) progress(static_cast<int64_t>(tokens.size()) - 256, wanted);
  return Tokenizer::byte_level(merges, options_.split, options_.specials);
}

}  // namespace tightloop
