#include "tightloop/train/data/documents.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/sha256.h"

namespace tightloop {
namespace {

constexpr int64_t kHashedTokens{4096};

void shuffle(std::vector<int32_t>& order, uint64_t seed, uint64_t stream) {
  Rng rng(seed, stream);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
}

}  // namespace

DocumentStream::DocumentStream(DocumentOptions options) : options_(std::move(options)) {
  if (options_.shards.empty()) fail(ErrorKind::usage, "no token shards given");
  if (options_.bos < 0 || options_.bos >= options_.vocab_size)
    fail(ErrorKind::usage, "the BOS token is {}, expected 0..{}", options_.bos,
         options_.vocab_size - 1);
  Sha256 hash;
  std::string without_floor;
  for (const std::string& path : options_.shards) {
    const TokenShard& shard = shards_.emplace_back(path);
    total_tokens_ += shard.count();
    hash.update(
        fmt::format("{} {}\n", std::filesystem::path(path).filename().string(), shard.count()));
    std::vector<int32_t> beginning(static_cast<size_t>(std::min(kHashedTokens, shard.count())));
    shard.copy(0, beginning);
    hash.update(beginning.data(), beginning.size() * sizeof(int32_t));
    if (std::filesystem::exists(floor_path(path)))
      floors_.emplace_back(floor_path(path), shard.count());
    else
      without_floor = path;
  }
  if (!floors_.empty() && !without_floor.empty())
    fail(ErrorKind::data, "{} is missing, but other shards of this data set have their .floor file",
         floor_path(without_floor));
  hash.update(fmt::format("bos {} seed {}\n", options_.bos,
                          options_.data_seed ? std::to_string(*options_.data_seed) : "none"));
  identity_ = hash.finish_hex();
  order_shards();
}

void DocumentStream::order_shards() {
  shard_order_.resize(shards_.size());
  std::iota(shard_order_.begin(), shard_order_.end(), 0);
  if (options_.data_seed)
    shuffle(shard_order_, *options_.data_seed, static_cast<uint64_t>(position_.epoch) << 32);
}

void DocumentStream::index_shard() {
  const int32_t s = current_shard();
  const TokenShard& shard = shards_[static_cast<size_t>(s)];
  if (indexed_ != s) {
    indexed_ = -1;
    starts_.clear();
    // On this thread only: a second OpenMP team beside the trainer's would take its cores.
    std::array<int32_t, 4096> block;
    for (int64_t begin = 0; begin < shard.count(); begin += std::ssize(block)) {
      const int64_t n = std::min(std::ssize(block), shard.count() - begin);
      shard.copy(begin, std::span(block).first(static_cast<size_t>(n)));
      for (int64_t i = 0; i < n; ++i) {
        const int32_t token = block[static_cast<size_t>(i)];
        if (static_cast<uint32_t>(token) >= static_cast<uint64_t>(options_.vocab_size))
          throw Error(ErrorKind::data,
                      fmt::format("{}: token {} (byte {}) is {}, but the vocabulary has {} entries",
                                  shard.path(), begin + i,
                                  kShardHeaderBytes + (begin + i) * shard.token_bytes(),
                                  static_cast<uint32_t>(token), options_.vocab_size))
              .with_hint(
                  "use the tokenizer that the shards were made with, or tokenize the text again");
        if (token == options_.bos) starts_.push_back(begin + i);
      }
    }
    starts_.push_back(shard.count());
    indexed_ = s;
  }
  document_order_.clear();
  if (options_.data_seed) {
    document_order_.resize(starts_.size() - 1);
    std::iota(document_order_.begin(), document_order_.end(), 0);
    shuffle(document_order_, *options_.data_seed,
            (static_cast<uint64_t>(position_.epoch) << 32) + 1 + static_cast<uint64_t>(s));
  }
}

DocumentRef DocumentStream::next() {
  if (indexed_ < 0) index_shard();
  int64_t empty_turns = 0;
  while (position_.document == std::ssize(starts_) - 1) {
    if (++empty_turns > std::ssize(shards_))
      fail(ErrorKind::data,
           "{}: no document: the BOS token {} occurs nowhere in the {} shard{} of this data set",
           shards_[0].path(), options_.bos, shards_.size(), shards_.size() == 1 ? "" : "s");
    position_.document = 0;
    if (++position_.turn == std::ssize(shards_)) {
      position_.turn = 0;
      ++position_.epoch;
      order_shards();
    }
    index_shard();
  }
  auto i = static_cast<size_t>(position_.document++);
  if (options_.data_seed) i = static_cast<size_t>(document_order_[i]);
  const int64_t length = starts_[i + 1] - starts_[i];
  return {.shard = indexed_, .length = static_cast<int32_t>(length), .begin = starts_[i]};
}

void DocumentStream::seek(const Position& position) {
  if (position.epoch < 0 || position.epoch > std::numeric_limits<int32_t>::max() ||
      position.turn < 0 || position.turn >= std::ssize(shards_) || position.document < 0)
    fail(ErrorKind::data, "data cursor: epoch {}, shard {}, document {}: no such place",
         position.epoch, position.turn, position.document);
  position_ = position;
  order_shards();
  index_shard();
  if (position.document > std::ssize(starts_) - 1)
    fail(ErrorKind::data, "data cursor: document {} of {}, which has {}", position.document,
         shards_[static_cast<size_t>(indexed_)].path(), starts_.size() - 1);
}

void DocumentStream::check(const DocumentRef& ref, bool inside) const {
  if (ref.shard < 0 || ref.shard >= std::ssize(shards_))
    fail(ErrorKind::data, "data cursor: shard {} of {}", ref.shard, shards_.size());
  const TokenShard& s = shards_[static_cast<size_t>(ref.shard)];
  if (ref.begin < 0 || ref.length < 1 || ref.begin > s.count() - ref.length ||
      (!inside && s[ref.begin] != options_.bos))
    fail(ErrorKind::data, "data cursor: no document of {} tokens at token {} of {}", ref.length,
         ref.begin, s.path());
}

}  // namespace tightloop
