#include "tightloop/train/data/tokenize.h"

#include <filesystem>
#include <fstream>
#include <functional>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/threads.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/text/split.h"
#include "tightloop/text/story_corpus.h"
#include "tightloop/train/data/inspect.h"
#include "tightloop/train/data/synth.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

struct TokenizeTest : ::testing::Test {
  fs::path root;
  Tokenizer tokenizer = Tokenizer::byte_level({}, kNanochatSplit, {"<|bos|>"});
  int32_t bos = 256;
  void SetUp() override {
    root = fs::temp_directory_path() / ("tl_tokenize_" + std::to_string(getpid()));
    fs::remove_all(root);
    fs::create_directories(root / "in/sub/.git");
  }
  void TearDown() override { fs::remove_all(root); }
  std::string put(const std::string& name, const std::string& text) const {
    std::ofstream(root / name, std::ios::binary) << text;
    return (root / name).string();
  }
  TokenizeOptions options() const {
    TokenizeOptions o;
    o.inputs = {(root / "in").string()};
    o.folder = (root / "out").string();
    return o;
  }
  /// The documents of a split as text, "|" before each.
  std::string text_of(const TokenizeResult::Split& split, const std::string& folder) const {
    std::string out;
    for (const std::string& name : split.shards) {
      const TokenShard shard((fs::path(folder) / name).string());
      for (int64_t i = 0; i < shard.count(); ++i)
        out += shard[i] == bos ? '|' : static_cast<char>(shard[i]);
    }
    return out;
  }
};

TEST_F(TokenizeTest, FilesAreDocuments) {
  put("in/part10.txt", "ten\n");
  put("in/part2.txt", "two\n");
  put("in/sub/a.txt", "below<|bos|>");
  put("in/.hidden", "no");
  put("in/sub/.git/x", "no");
  put("in/blank.txt", " \n\n ");
  const TokenizeOptions o = options();
  const TokenizeResult result = tokenize_text(tokenizer, o);
  EXPECT_EQ(result.files, 4);
  EXPECT_EQ(text_of(result.train, o.folder), "|two\n|ten\n");
  EXPECT_EQ(text_of(result.val, o.folder), "|below<|bos|>");
  EXPECT_EQ(result.train.documents, 2);
  EXPECT_EQ(result.train.bytes, 8);
  EXPECT_EQ(result.train.tokens, 10);
  EXPECT_EQ(result.train.longest, 5);
  EXPECT_EQ(Tokenizer::load(o.folder).content_hash(), tokenizer.content_hash());
  EXPECT_THROW(tokenize_text(tokenizer, o), Error);  // the folder is there
}

TEST_F(TokenizeTest, SeparatorsPiecesShards) {
  const std::string a = put("in/a", "\n\none\ntwo\n\n\n\nthree\r\n\n\nfour\n");
  const std::string v = put("val", "five\n\nsix");
  TokenizeOptions o = options();
  o.inputs = {a};
  o.separator = "\n\n";
  o.val_fraction = 0.4;
  TokenizeResult result = tokenize_text(tokenizer, o);
  EXPECT_EQ(text_of(result.train, o.folder), "|one\ntwo|three");
  EXPECT_EQ(text_of(result.val, o.folder), "|four");

  o.folder += "2";
  o.val_inputs = {v};
  o.max_document_tokens = 4;
  o.shard_tokens = 6;
  result = tokenize_text(tokenizer, o);
  EXPECT_EQ(text_of(result.train, o.folder), "|one|\ntw|o|thr|ee|fou|r");
  EXPECT_EQ(text_of(result.val, o.folder), "|fiv|e|six");
  EXPECT_EQ(result.train.longest, 4);
  EXPECT_EQ(result.train.documents, 7);
  EXPECT_EQ(result.train.shards.size(), 4u);  // 8, 6, 7 and 2 tokens
  for (const std::string& name : result.train.shards)
    EXPECT_EQ(TokenShard((fs::path(o.folder) / name).string())[0], bos);
}

TEST_F(TokenizeTest, SameBytesOnAnyThreadCount) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "Line " + std::to_string(i * 7919) + " of it.\n\n";
  put("in/a", text);
  const int threads = thread_count();
  TokenizeOptions o = options();
  o.separator = "\n\n";
  std::vector<std::string> files;
  for (const int n : {1, 3}) {
    set_thread_count(n);
    o.folder = (root / std::to_string(n)).string();
    const TokenizeResult result = tokenize_text(tokenizer, o);
    EXPECT_EQ(result.train.documents, 2970);
    EXPECT_EQ(result.val.documents, 30);
    files.push_back(read_file(o.folder + "/train_000000.bin") +
                    read_file(o.folder + "/dataset.json"));
  }
  set_thread_count(threads);
  EXPECT_EQ(files[0], files[1]);
}

TEST_F(TokenizeTest, Errors) {
  const auto kind_of = [&](const std::function<void(TokenizeOptions&)>& change) {
    TokenizeOptions o = options();
    change(o);
    try {
      tokenize_text(tokenizer, o);
    } catch (const Error& error) {
      EXPECT_FALSE(fs::exists(o.folder));
      return error.kind();
    }
    return ErrorKind::internal;
  };
  EXPECT_EQ(kind_of([](auto&) {}), ErrorKind::data);  // no file
  put("in/a", " \n");
  EXPECT_EQ(kind_of([](auto&) {}), ErrorKind::data);  // no document
  put("in/a", "text");
  EXPECT_EQ(kind_of([](auto&) {}), ErrorKind::data);  // one document
  EXPECT_EQ(kind_of([](auto& o) { o.inputs.clear(); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([](auto& o) { o.inputs = {"/nonexistent/file"}; }), ErrorKind::io);
  EXPECT_EQ(kind_of([](auto& o) { o.val_fraction = 1; }), ErrorKind::usage);
  EXPECT_EQ(kind_of([](auto& o) { o.max_document_tokens = 1; }), ErrorKind::usage);
  EXPECT_EQ(kind_of([](auto& o) { o.shard_tokens = 0; }), ErrorKind::usage);
  const std::string blank = put("blank", "\n");
  EXPECT_EQ(kind_of([&](auto& o) { o.val_inputs = {blank}; }), ErrorKind::data);
  put("in/b", std::string("bin\0ary", 7));
  EXPECT_EQ(kind_of([](auto&) {}), ErrorKind::data);
}

TEST_F(TokenizeTest, InspectCounts) {
  const std::string path = (root / "a.bin").string();
  const std::string other = (root / "b.bin").string();
  TokenShardWriter a(path, 300);
  a.append(std::vector<int32_t>{7, 8, 256, 1, 2, 3, 256, 256, 9, 290});
  a.finish();
  TokenShardWriter b(other, 70000);
  b.append(std::vector<int32_t>{256, 5});
  b.finish();
  const ShardSummary s =
      inspect_shards({path, other}, {.bos = 256, .documents = 3, .document_tokens = 3});
  ASSERT_EQ(s.shards.size(), 2u);
  EXPECT_EQ(s.shards[0].leading_tokens, 2);
  EXPECT_EQ(s.shards[0].documents, 3);
  EXPECT_EQ(s.shards[0].max_token, 290u);
  EXPECT_EQ(s.shards[1].token_bytes, 4);
  EXPECT_EQ(s.tokens, 12);
  EXPECT_EQ(s.documents, 4);
  EXPECT_EQ(s.shortest, 1);
  EXPECT_EQ(s.longest, 4);
  EXPECT_EQ(s.median, 3);
  EXPECT_DOUBLE_EQ(s.mean, 2.5);
  EXPECT_EQ(s.lengths, (std::vector<int64_t>{1, 2, 1}));
  EXPECT_FALSE(s.floor);
  EXPECT_EQ(s.first, (std::vector<std::vector<int32_t>>{{256, 1, 2}, {256}, {256, 9, 290}}));
}

TEST_F(TokenizeTest, InspectReadsTheFloor) {
  SynthOptions o;
  o.folder = (root / "corpus").string();
  o.train_tokens = 20000;
  o.val_tokens = 1000;
  const CorpusInfo info = make_corpus(o);
  const ShardSummary s = inspect_shards({o.folder + "/train_000000.bin"},
                                        {.bos = static_cast<int32_t>(info.vocab_size - 1)});
  EXPECT_EQ(s.documents, info.train.documents);
  ASSERT_TRUE(s.floor);
  EXPECT_NEAR(*s.floor, info.train.floor, 1e-9);
  double sum = 0;
  for (size_t k = 0; k < kSkillCount; ++k)
    sum += s.skill_floor[k] * static_cast<double>(s.skill_tokens[k]);
  EXPECT_NEAR(sum / static_cast<double>(s.tokens), *s.floor, 1e-9);
  EXPECT_EQ(s.skill_floor[static_cast<size_t>(Skill::recall)], 0);
  EXPECT_LE(s.longest, 127);
  EXPECT_GE(s.shortest, 42);
}

}  // namespace
}  // namespace tightloop
