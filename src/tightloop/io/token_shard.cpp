#include "tightloop/io/token_shard.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <glob.h>
#include <limits>
#include <sys/stat.h>
#include <utility>

#include "tightloop/core/error.h"
#include "tightloop/core/threads.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kScanParts = 64;
constexpr size_t kWriteBufferBytes = size_t{1} << 20;
constexpr std::array<char, 8> kFloorMagic = {'t', 'l', 'f', 'l', 'o', 'o', 'r', '1'};

int32_t read_i32(const uint8_t* p) {
  int32_t value = 0;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <typename T>
uint32_t scan_max(const T* tokens, int64_t count) {
  std::array<T, kScanParts> most{};
  parallel_parts(count, kScanParts, [&](int64_t begin, int64_t end, int part) {
    T m = 0;
    for (int64_t i = begin; i < end; ++i) m = std::max(m, tokens[i]);
    most[static_cast<size_t>(part)] = m;
  });
  return *std::max_element(most.begin(), most.end());
}

template <typename... Args>
[[noreturn]] void refuse_header(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(ErrorKind::data, fmt::format(text, std::forward<Args>(args)...))
      .with_hint(
          "make the shard again with `tightloop data tokenize` or `tightloop data synth`, or "
          "download it again with `tightloop data fetch`");
}

/// The files that one part of a data set spec names.
std::vector<std::string> expand(const std::string& part) {
  std::vector<std::string> files;
  std::error_code error;
  if (fs::is_directory(part, error)) {
    for (fs::directory_iterator it(part, error), end; !error && it != end; it.increment(error))
      if (it->path().extension() == ".bin" && it->is_regular_file(error))
        files.push_back(it->path().string());
    if (error) fail_errno(error.value(), "list", part);
    if (files.empty())
      throw Error(ErrorKind::data, fmt::format("{}: no token shards (*.bin) in this folder", part))
          .with_hint("make some with `tightloop data synth` or `tightloop data tokenize`");
  } else if (fs::exists(part, error)) {
    files.push_back(part);
  } else if (part.find_first_of("*?[") != std::string::npos) {
    glob_t found = {};
    const int status = ::glob(part.c_str(), GLOB_NOSORT, nullptr, &found);
    for (size_t i = 0; status == 0 && i < found.gl_pathc; ++i)
      files.emplace_back(found.gl_pathv[i]);
    ::globfree(&found);
    if (files.empty()) fail(ErrorKind::data, "{}: no file matches this pattern", part);
  } else {
    throw Error(ErrorKind::io, fmt::format("'{}' does not exist: expected a token shard, a folder "
                                           "of them or a pattern",
                                           part))
        .with_hint(
            "make shards with `tightloop data synth FOLDER` (the built-in stories) or `tightloop "
            "data tokenize TEXT -o FOLDER --tokenizer FILE`");
  }
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return natural_less(a, b); });
  return files;
}

}  // namespace

ShardHeader parse_shard_header(std::span<const uint8_t> bytes,
                               int64_t file_bytes,
                               const std::string& name) {
  if (static_cast<int64_t>(bytes.size()) < kShardHeaderBytes || file_bytes < kShardHeaderBytes)
    refuse_header("{}: file has {} bytes, a token shard has a header of {}", name, file_bytes,
                  kShardHeaderBytes);
  const int32_t magic = read_i32(bytes.data());
  const int32_t version = read_i32(bytes.data() + 4);
  const int32_t count = read_i32(bytes.data() + 8);
  ShardHeader header;
  int32_t expected_version = 0;
  if (magic == kShardMagicU16) {
    header.token_bytes = 2;
    expected_version = 1;
  } else if (magic == kShardMagicU32) {
    header.token_bytes = 4;
    expected_version = 7;
  } else {
    refuse_header("{}: magic at byte 0 is {}, expected {} (uint16) or {} (uint32): no token shard",
                  name, magic, kShardMagicU16, kShardMagicU32);
  }
  if (version != expected_version)
    refuse_header("{}: version at byte 4 is {}, expected {} for magic {}", name, version,
                  expected_version, magic);
  if (count < 0) refuse_header("{}: token count at byte 8 is {}, negative", name, count);
  header.count = count;
  const int64_t expected_bytes = kShardHeaderBytes + header.count * header.token_bytes;
  if (file_bytes != expected_bytes)
    refuse_header("{}: file has {} bytes, {} tokens of {} bytes (count at byte 8) need {}: {}",
                  name, file_bytes, count, header.token_bytes, expected_bytes,
                  file_bytes < expected_bytes ? "truncated" : "surplus bytes at the end");
  return header;
}

TokenShard::TokenShard(std::string path)
    : file_(std::move(path)),
      header_(parse_shard_header(file_.bytes(), file_.size(), file_.path())) {}

void TokenShard::copy(int64_t begin, std::span<int32_t> out) const {
  const auto n = static_cast<int64_t>(out.size());
  TL_CHECK(begin >= 0 && n <= count() && begin <= count() - n);
  if (header_.token_bytes == 2) {
    const uint16_t* tokens = tokens_u16() + begin;
    std::copy(tokens, tokens + n, out.begin());
  } else {
    if (n > 0) std::memcpy(out.data(), tokens_u32() + begin, out.size_bytes());
  }
}

uint32_t TokenShard::max_token() const {
  if (count() == 0) return 0;
  return header_.token_bytes == 2 ? scan_max(tokens_u16(), count())
                                  : scan_max(tokens_u32(), count());
}

void TokenShard::check_vocab(int64_t vocab_size) const {
  if (int64_t{max_token()} < vocab_size || count() == 0) return;
  const auto token_at = [&](int64_t i) {
    return header_.token_bytes == 2 ? int64_t{tokens_u16()[i]} : int64_t{tokens_u32()[i]};
  };
  int64_t i = 0;
  while (token_at(i) < vocab_size) ++i;
  throw Error(ErrorKind::data,
              fmt::format("{}: token {} (at byte {}) has id {}, the vocabulary has {}", path(), i,
                          kShardHeaderBytes + i * header_.token_bytes, token_at(i), vocab_size))
      .with_hint("use the tokenizer that the shards were made with, or tokenize the text again");
}

TokenShardWriter::TokenShardWriter(std::string path, int64_t vocab_size)
    : file_(std::move(path)), vocab_size_(vocab_size), token_bytes_(vocab_size <= 65536 ? 2 : 4) {
  if (vocab_size < 1 || vocab_size > (int64_t{1} << 31))
    fail(ErrorKind::usage, "{}: vocabulary of {}, expected 1 to 2^31", file_.path(), vocab_size);
  buffer_.reserve(kWriteBufferBytes + 4);
  buffer_.assign(static_cast<size_t>(kShardHeaderBytes), 0);  // filled in by finish()
}

void TokenShardWriter::append(std::span<const int32_t> tokens) {
  if (count_ + static_cast<int64_t>(tokens.size()) > std::numeric_limits<int32_t>::max())
    fail(ErrorKind::data, "{}: more than 2^31 - 1 tokens in one shard", file_.path());
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab_size_)
      fail(ErrorKind::data, "{}: token {} has id {}, the vocabulary has {}", file_.path(), count_,
           token, vocab_size_);
    const size_t end = buffer_.size();
    buffer_.resize(end + static_cast<size_t>(token_bytes_));
    std::memcpy(buffer_.data() + end, &token, static_cast<size_t>(token_bytes_));
    ++count_;
    if (buffer_.size() >= kWriteBufferBytes) flush();
  }
}

void TokenShardWriter::flush() {
  file_.write(buffer_.data(), static_cast<int64_t>(buffer_.size()));
  buffer_.clear();
}

void TokenShardWriter::finish() {
  flush();
  const std::array<int32_t, 3> header = {token_bytes_ == 2 ? kShardMagicU16 : kShardMagicU32,
                                         token_bytes_ == 2 ? 1 : 7, static_cast<int32_t>(count_)};
  file_.write_at(0, header.data(), sizeof header);
  file_.commit();
}

std::string floor_path(const std::string& shard_path) {
  return shard_path + ".floor";
}

FloorFile::FloorFile(std::string path, int64_t shard_tokens) : file_(std::move(path)) {
  if (file_.size() < kFloorHeaderBytes ||
      std::memcmp(file_.data(), kFloorMagic.data(), kFloorMagic.size()) != 0)
    fail(ErrorKind::data, "{}: does not start with 'tlfloor1': no floor file", file_.path());
  std::memcpy(&count_, file_.data() + 8, sizeof count_);
  if (count_ != shard_tokens)
    fail(ErrorKind::data, "{}: token count at byte 8 is {}, its shard has {}", file_.path(), count_,
         shard_tokens);
  constexpr int64_t kBytesPerToken = 5;
  if (count_ < 0 || count_ > (file_.size() - kFloorHeaderBytes) / kBytesPerToken ||
      file_.size() != kFloorHeaderBytes + count_ * kBytesPerToken)
    fail(ErrorKind::data, "{}: file has {} bytes, {} tokens (count at byte 8) need {} + {} each",
         file_.path(), file_.size(), count_, kFloorHeaderBytes, kBytesPerToken);
}

std::span<const float> FloorFile::nats() const {
  return {reinterpret_cast<const float*>(file_.data() + kFloorHeaderBytes),
          static_cast<size_t>(count_)};
}

std::span<const uint8_t> FloorFile::classes() const {
  return {file_.data() + kFloorHeaderBytes + 4 * count_, static_cast<size_t>(count_)};
}

void write_floor_file(const std::string& path,
                      std::span<const float> nats,
                      std::span<const uint8_t> classes) {
  if (nats.size() != classes.size())
    fail(ErrorKind::usage, "{}: {} values of -log p but {} classes", path, nats.size(),
         classes.size());
  std::array<uint8_t, kFloorHeaderBytes> header{};
  const auto count = static_cast<int64_t>(nats.size());
  std::memcpy(header.data(), kFloorMagic.data(), kFloorMagic.size());
  std::memcpy(header.data() + 8, &count, sizeof count);
  AtomicFile file(path);
  file.write(header.data(), kFloorHeaderBytes);
  file.write(nats.data(), static_cast<int64_t>(nats.size_bytes()));
  file.write(classes.data(), static_cast<int64_t>(classes.size_bytes()));
  file.commit();
}

DatasetShards find_shards(const std::string& spec) {
  std::vector<std::string> files;
  std::error_code error;
  if (fs::exists(spec, error)) {
    files = expand(spec);
  } else {
    for (size_t begin = 0; begin <= spec.size();) {
      const size_t end = std::min(spec.find(',', begin), spec.size());
      const std::string part = spec.substr(begin, end - begin);
      begin = end + 1;
      if (part.empty()) fail(ErrorKind::usage, "data '{}': an empty entry in the list", spec);
      const std::vector<std::string> found = expand(part);
      files.insert(files.end(), found.begin(), found.end());
    }
  }
  DatasetShards shards;
  bool named = false;
  for (const std::string& file : files) {
    const std::string name = fs::path(file).filename().string();
    const bool is_train = name.find("train") != std::string::npos;
    const bool is_val = !is_train && name.find("val") != std::string::npos;
    named = named || is_train || is_val;
    (is_val ? shards.val : shards.train).push_back(file);
  }
  if (!named && shards.train.size() > 1) {
    shards.val.push_back(shards.train.back());
    shards.train.pop_back();
  }
  return shards;
}

bool natural_less(std::string_view a, std::string_view b) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto digits_at = [&](std::string_view s, size_t i) {
    size_t end = i;
    while (end < s.size() && is_digit(s[end])) ++end;
    while (i + 1 < end && s[i] == '0') ++i;
    return std::pair(s.substr(i, end - i), end);
  };
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_digit(a[i]) && is_digit(b[j])) {
      const auto [x, x_end] = digits_at(a, i);
      const auto [y, y_end] = digits_at(b, j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
      i = x_end;
      j = y_end;
      continue;
    }
    if (a[i] != b[j]) return static_cast<unsigned char>(a[i]) < static_cast<unsigned char>(b[j]);
    ++i;
    ++j;
  }
  if (a.size() - i != b.size() - j) return a.size() - i < b.size() - j;
  return a < b;
}

}  // namespace tightloop
