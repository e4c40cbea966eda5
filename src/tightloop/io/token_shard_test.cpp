#include "tightloop/io/token_shard.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <gtest/gtest.h>

#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

std::string header(int32_t magic, int32_t version, int32_t count) {
  std::string bytes(1024, '\0');
  const int32_t fields[] = {magic, version, count};
  std::memcpy(bytes.data(), fields, sizeof fields);
  return bytes;
}

std::vector<int32_t> numbers(int64_t n, int32_t modulus) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>((i * 7919) % static_cast<size_t>(modulus));
  return tokens;
}

void write_shard(const std::string& path, std::span<const int32_t> tokens, int64_t vocab) {
  TokenShardWriter writer(path, vocab);
  writer.append(tokens.first(tokens.size() / 3));
  writer.append(tokens.subspan(tokens.size() / 3));
  writer.finish();
}

void touch(const std::string& path) {
  std::ofstream(path).close();
}

TEST(TokenShard, RoundTripsBothWidths) {
  const TempDir dir;
  for (const int32_t vocab : {50257, 65536, 200000}) {
    const std::vector<int32_t> tokens = numbers(700001, vocab);
    write_shard(dir / "s.bin", tokens, vocab);
    const TokenShard shard(dir / "s.bin");
    EXPECT_EQ(shard.token_bytes(), vocab <= 65536 ? 2 : 4);
    ASSERT_EQ(shard.count(), 700001);
    EXPECT_EQ(shard[0], tokens[0]);
    EXPECT_EQ(shard[700000], tokens[700000]);
    std::vector<int32_t> out(5000);
    shard.copy(695001, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), tokens.end() - 5000));
    EXPECT_EQ(shard.max_token(), static_cast<uint32_t>(vocab - 1));
    EXPECT_NO_THROW(shard.check_vocab(vocab));
    EXPECT_THROW(shard.copy(695002, out), Error);
    EXPECT_THROW(shard.copy(-1, out), Error);
  }
}

TEST(TokenShard, BytesAreTheDocumentedLayout) {
  const TempDir dir;
  write_shard(dir / "s.bin", std::vector<int32_t>{1, 0x0203}, 1000);
  EXPECT_EQ(read_file(dir / "s.bin"), header(20240520, 1, 2) + std::string("\1\0\3\2", 4));
  write_shard(dir / "l.bin", std::vector<int32_t>{0x01020304}, 1 << 30);
  EXPECT_EQ(read_file(dir / "l.bin"), header(20240801, 7, 1) + "\4\3\2\1");
}

TEST(TokenShard, EmptyShard) {
  const TempDir dir;
  write_shard(dir / "s.bin", {}, 1000);
  const TokenShard shard(dir / "s.bin");
  EXPECT_EQ(shard.count(), 0);
  EXPECT_EQ(shard.max_token(), 0u);
  EXPECT_NO_THROW(shard.check_vocab(1));
}

TEST(TokenShard, TokenOutsideTheVocabulary) {
  const TempDir dir;
  std::vector<int32_t> tokens(100000, 3);
  tokens[77777] = 500;
  tokens[88888] = 999;
  write_shard(dir / "s.bin", tokens, 1000);
  const Error error = error_of([&] { TokenShard(dir / "s.bin").check_vocab(500); });
  EXPECT_EQ(error.message(),
            (dir / "s.bin") + ": token 77777 (at byte 156578) has id 500, the vocabulary has 500");
  std::ofstream(dir / "big.bin") << header(20240801, 7, 1) + "\xff\xff\xff\xff";
  expect_error(ErrorKind::data, "has id 4294967295",
               [&] { TokenShard(dir / "big.bin").check_vocab(int64_t{1} << 31); });
}

TEST(TokenShard, BadFiles) {
  const TempDir dir;
  const auto expect_bad = [&](std::string_view part, const std::string& bytes) {
    std::ofstream(dir / "s.bin", std::ios::binary | std::ios::trunc) << bytes;
    expect_error(ErrorKind::data, part, [&] { TokenShard shard(dir / "s.bin"); });
  };
  expect_bad("has 0 bytes", "");
  expect_bad("has 1023 bytes", header(20240520, 1, 0).substr(1));
  expect_bad("magic at byte 0 is 1701015151", "once upon a time" + std::string(2000, ' '));
  expect_bad("version at byte 4 is 2, expected 1", header(20240520, 2, 0));
  expect_bad("version at byte 4 is 1, expected 7", header(20240801, 1, 0));
  expect_bad("count at byte 8 is -1", header(20240520, 1, -1));
  expect_bad("need 1028: truncated", header(20240520, 1, 2) + "abc");
  expect_bad("need 1028: surplus bytes", header(20240520, 1, 2) + "abcde");
  expect_bad("need 8589935612: truncated", header(20240801, 7, INT32_MAX) + "abcd");
  expect_error(ErrorKind::io, "No such file", [&] { TokenShard shard(dir / "none.bin"); });
}

TEST(TokenShard, WriterRefusesBadTokensAndLeavesNothing) {
  const TempDir dir;
  expect_error(ErrorKind::data, "token 1 has id 10, the vocabulary has 10", [&] {
    write_shard(dir / "s.bin", std::vector<int32_t>{9, 10}, 10);
  });
  expect_error(ErrorKind::data, "token 0 has id -1",
               [&] { write_shard(dir / "s.bin", std::vector<int32_t>{-1}, 10); });
  expect_error(ErrorKind::usage, "vocabulary of 0", [&] { TokenShardWriter(dir / "s.bin", 0); });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(FloorFile, RoundTripsAndChecks) {
  const TempDir dir;
  const std::vector<float> nats = {0.0f, 1.5f, 2.25f};
  const std::vector<uint8_t> classes = {0, 3, 255};
  const std::string path = floor_path(dir / "s.bin");
  EXPECT_EQ(path, dir / "s.bin.floor");
  write_floor_file(path, nats, classes);
  const FloorFile file(path, 3);
  EXPECT_TRUE(std::equal(nats.begin(), nats.end(), file.nats().begin(), file.nats().end()));
  EXPECT_TRUE(
      std::equal(classes.begin(), classes.end(), file.classes().begin(), file.classes().end()));

  expect_error(ErrorKind::data, "count at byte 8 is 3, its shard has 4",
               [&] { FloorFile floor(path, 4); });
  const std::string good = read_file(path);
  ASSERT_EQ(good.size(), 64u + 15u);
  for (size_t n = 0; n < good.size(); ++n) {
    write_file_atomically(path, good.substr(0, n));
    EXPECT_EQ(error_of([&] { FloorFile floor(path, 3); }).kind(), ErrorKind::data) << n;
  }
  std::string huge = good;
  const int64_t count = INT64_MAX;
  std::memcpy(huge.data() + 8, &count, 8);
  write_file_atomically(path, huge);
  expect_error(ErrorKind::data, "need 64 + 5 each", [&] { FloorFile floor(path, INT64_MAX); });
  expect_error(ErrorKind::usage, "3 values of -log p but 2 classes",
               [&] { write_floor_file(path, nats, std::span(classes).first(2)); });
}

TEST(FindShards, FolderInNaturalOrderSplitByName) {
  const TempDir dir;
  for (const char* name : {"f_train_10.bin", "f_train_2.bin", "f_val_0.bin", "f_train_2.bin.floor",
                           "notes.txt", "f_train_3.bin.tmp-1-0"})
    touch(dir / name);
  const DatasetShards shards = find_shards(dir.path());
  EXPECT_EQ(shards.train,
            (std::vector<std::string>{dir / "f_train_2.bin", dir / "f_train_10.bin"}));
  EXPECT_EQ(shards.val, std::vector<std::string>{dir / "f_val_0.bin"});
}

TEST(FindShards, UnnamedFilesLastIsValidation) {
  const TempDir dir;
  for (const char* name : {"a1.bin", "a2.bin", "a10.bin"}) touch(dir / name);
  const DatasetShards shards = find_shards(dir / "a*.bin");
  EXPECT_EQ(shards.train, (std::vector<std::string>{dir / "a1.bin", dir / "a2.bin"}));
  EXPECT_EQ(shards.val, std::vector<std::string>{dir / "a10.bin"});
  const DatasetShards one = find_shards(dir / "a1.bin");
  EXPECT_EQ(one.train.size(), 1u);
  EXPECT_TRUE(one.val.empty());
}

TEST(FindShards, ListsAndErrors) {
  const TempDir dir;
  for (const char* name : {"x.bin", "val.bin", "a,b_train.bin"}) touch(dir / name);
  const DatasetShards shards = find_shards((dir / "val.bin") + "," + (dir / "x*.bin"));
  EXPECT_EQ(shards.train, std::vector<std::string>{dir / "x.bin"});
  EXPECT_EQ(shards.val, std::vector<std::string>{dir / "val.bin"});
  EXPECT_EQ(find_shards(dir / "a,b_train.bin").train.size(), 1u);
  expect_error(ErrorKind::io, "none.bin' does not exist", [&] { find_shards(dir / "none.bin"); });
  expect_error(ErrorKind::data, "no file matches", [&] { find_shards(dir / "q*.bin"); });
  expect_error(ErrorKind::usage, "empty entry", [&] { find_shards((dir / "x.bin") + ","); });
  std::filesystem::create_directory(dir / "empty");
  expect_error(ErrorKind::data, "no token shards", [&] { find_shards(dir / "empty"); });
}

TEST(NaturalLess, DigitsCompareAsNumbers) {
  EXPECT_TRUE(natural_less("a2", "a10"));
  EXPECT_FALSE(natural_less("a10", "a2"));
  EXPECT_TRUE(natural_less("a", "a1"));
  EXPECT_TRUE(natural_less("a9b", "a10a"));
  EXPECT_TRUE(natural_less("a01", "a1"));
  EXPECT_FALSE(natural_less("a1", "a01"));
  EXPECT_FALSE(natural_less("a1", "a1"));
  EXPECT_TRUE(natural_less("99999999999999999999998", "99999999999999999999999"));
}

}  // namespace
}  // namespace tightloop
