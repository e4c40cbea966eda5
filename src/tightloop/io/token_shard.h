#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {

/// Token shards: a header of 256 int32 (magic, version, token count, zeros), then the tokens,
/// little endian. uint16 tokens: magic 20240520, version 1 (llm.c, modded-nanogpt). uint32 tokens:
/// magic 20240801, version 7 (llm.c, for vocabularies above 65,536).
inline constexpr int64_t kShardHeaderBytes = 1024;
inline constexpr int32_t kShardMagicU16 = 20240520;
inline constexpr int32_t kShardMagicU32 = 20240801;

struct ShardHeader {
  int64_t count = 0;
  int64_t token_bytes = 2;  // 2 or 4
};

/// Checks magic, version, and the count against the size of the file (given as its first bytes and
/// its size). Error{data} naming file, field, got and expected: foreign, truncated, surplus bytes.
ShardHeader parse_shard_header(std::span<const uint8_t> bytes,
                               int64_t file_bytes,
                               const std::string& name);

/// A mapped token shard.
class TokenShard {
 public:
  explicit TokenShard(std::string path);

  const std::string& path() const { return file_.path(); }
  int64_t count() const { return header_.count; }
  int64_t token_bytes() const { return header_.token_bytes; }
  /// Token i, 0 <= i < count(), unchecked. uint32 tokens from 2^31 on come out negative: call
  /// check_vocab() once before use.
  int32_t operator[](int64_t i) const {
    return header_.token_bytes == 2 ? int32_t{tokens_u16()[i]}
                                    : static_cast<int32_t>(tokens_u32()[i]);
  }
  /// Copies tokens [begin, begin + out.size()). Error{internal} when they are not all there.
  void copy(int64_t begin, std::span<int32_t> out) const;
  /// The largest token, 0 for an empty shard. Reads the whole shard, in parallel.
  uint32_t max_token() const;
  /// Error{data} naming the first token that is not below `vocab_size`, and its place. Parallel.
  void check_vocab(int64_t vocab_size) const;

 private:
  const uint16_t* tokens_u16() const {
    return reinterpret_cast<const uint16_t*>(file_.data() + kShardHeaderBytes);
  }
  const uint32_t* tokens_u32() const {
    return reinterpret_cast<const uint32_t*>(file_.data() + kShardHeaderBytes);
  }

  MappedFile file_;
  ShardHeader header_;
};

/// Writes a shard as a stream; it appears under its name at finish(). Error{usage} for a vocabulary
/// that is not in 1..2^31, Error{data} for a token outside it or a count above 2^31 - 1, Error{io}.
class TokenShardWriter {
 public:
  /// uint16 tokens when vocab_size <= 65,536, uint32 otherwise.
  TokenShardWriter(std::string path, int64_t vocab_size);

  void append(std::span<const int32_t> tokens);
  int64_t count() const { return count_; }
  void finish();

 private:
  void flush();

  AtomicFile file_;
  int64_t vocab_size_;
  int64_t token_bytes_;
  int64_t count_ = 0;
  std::vector<uint8_t> buffer_;
};

/// The companion of a shard whose source is known exactly, `<shard>.floor`: 8 bytes "tlfloor1",
/// int64 token count, 48 zero bytes, then per token float32 -log p (nats), then per token a uint8
/// class.
inline constexpr int64_t kFloorHeaderBytes = 64;

/// "<shard>.floor".
std::string floor_path(const std::string& shard_path);

class FloorFile {
 public:
  /// Error{data} when the file is foreign, cut short, or not for `shard_tokens` tokens.
  FloorFile(std::string path, int64_t shard_tokens);

  int64_t count() const { return count_; }
  /// -log p of each token, nats.
  std::span<const float> nats() const;
  std::span<const uint8_t> classes() const;

 private:
  MappedFile file_;
  int64_t count_ = 0;
};

/// Writes the companion atomically. Error{usage} when the sizes differ.
void write_floor_file(const std::string& path,
                      std::span<const float> nats,
                      std::span<const uint8_t> classes);

struct DatasetShards {
  std::vector<std::string> train;
  std::vector<std::string> val;
};

/// The shards of a data set. `spec` is a comma-separated list of files, folders (every *.bin in
/// them) and glob patterns, each part in natural order (shard_2 before shard_10). A file name with
/// "train" in it goes to train, one with "val" to val, others to train; when no name says either
/// and there are at least two files, the last one is val (nanochat's rule). Error{io} for what does
/// not exist, Error{data} when a folder or pattern holds no shard.
DatasetShards find_shards(const std::string& spec);

/// Whether a sorts before b when runs of digits compare as numbers.
bool natural_less(std::string_view a, std::string_view b);

}  // namespace tightloop
