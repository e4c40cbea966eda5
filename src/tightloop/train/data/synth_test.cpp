#include "tightloop/train/data/synth.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/text/split.h"
#include "tightloop/text/story_corpus.h"
#include "tightloop/train/data/loader.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

struct SynthTest : ::testing::Test {
  fs::path root;
  void SetUp() override {
    root = fs::temp_directory_path() / ("tl_synth_" + std::to_string(getpid()));
    fs::remove_all(root);
    fs::create_directories(root);
  }
  void TearDown() override { fs::remove_all(root); }
  SynthOptions options(const std::string& name) const {
    SynthOptions o;
    o.folder = (root / name).string();
    o.train_tokens = 30000;
    o.val_tokens = 5000;
    o.shard_tokens = 12000;
    return o;
  }
};

TEST_F(SynthTest, WritesWhatTheCorpusSays) {
  const SynthOptions o = options("a");
  const CorpusInfo info = make_corpus(o);
  EXPECT_FALSE(info.reused);
  EXPECT_EQ(info.train.shards.size(), 3u);
  EXPECT_EQ(info.val.shards.size(), 1u);
  EXPECT_GE(info.train.tokens, o.train_tokens);
  EXPECT_LT(info.train.tokens, o.train_tokens + 127);
  const DatasetShards shards = find_shards(o.folder);
  ASSERT_EQ(shards.train.size(), 3u);
  ASSERT_EQ(shards.val.size(), 1u);

  const StoryCorpus corpus(StorySettings::small());
  const auto check = [&](const std::vector<std::string>& files, const CorpusInfo::Split& split,
                         uint64_t stream) {
    int64_t tokens = 0, documents = 0;
    double nats = 0;
    for (size_t f = 0; f < files.size(); ++f) {
      const TokenShard shard(files[f]);
      const FloorFile floor(floor_path(files[f]), shard.count());
      EXPECT_EQ(split.shards[f].tokens, shard.count());
      EXPECT_EQ(split.shards[f].sha256, sha256_hex(MappedFile(files[f]).text()));
      for (int64_t i = 0; i < shard.count(); ++documents) {
        const SyntheticDocument story = corpus.story(stream + static_cast<uint64_t>(documents));
        for (size_t t = 0; t < story.tokens.size(); ++t, ++i) {
          ASSERT_EQ(shard[i], story.tokens[t]);
          ASSERT_EQ(floor.nats()[static_cast<size_t>(i)], story.nll[t]);
          ASSERT_EQ(floor.classes()[static_cast<size_t>(i)], story.skill[t]);
          nats += story.nll[t];
        }
      }
      tokens += shard.count();
    }
    EXPECT_EQ(tokens, split.tokens);
    EXPECT_EQ(documents, split.documents);
    EXPECT_NEAR(nats / static_cast<double>(tokens), split.floor, 1e-9);
  };
  check(shards.train, info.train, 0);
  check(shards.val, info.val, StoryCorpus::kValidationStream);
  EXPECT_NEAR(info.train.floor, info.rate, 0.03);
  EXPECT_EQ(Tokenizer::load(o.folder).content_hash(), info.tokenizer_hash);

  // The training rows carry the floor of exactly the targets they carry.
  BatchLoader loader({.shards = shards.train,
                      .bos = corpus.bos(),
                      .vocab_size = corpus.vocab_size(),
                      .data_seed = 3},
                     4, 128);
  for (int step = 0; step < 20; ++step) {
    const Batch& batch = loader.next();
    for (size_t i = 0; i + 1 < batch.document_starts.size(); ++i) {
      const auto begin = static_cast<size_t>(batch.document_starts[i]);
      const auto end =
          std::min(static_cast<size_t>(batch.document_starts[i + 1]), (begin / 128 + 1) * 128);
      const StoryCorpus::Score score =
          corpus.score(std::span(batch.tokens).subspan(begin, end - begin));
      ASSERT_FALSE(score.error) << *score.error;
      for (size_t t = begin + 1; t < end; ++t) {
        ASSERT_EQ(batch.floor[t - 1], score.document.nll[t - begin]);
        ASSERT_EQ(batch.skill[t - 1], score.document.skill[t - begin]);
      }
    }
  }
}

// Σ (−log p − entropy) over the branch tokens of packed rows, in standard errors: near 0 when a row
// tells nothing about the documents to come.
double branch_bias(const std::vector<std::string>& shards,
                   const StoryCorpus& corpus,
                   Packing packing) {
  RowPacker packer(
      {.shards = shards, .bos = corpus.bos(), .vocab_size = corpus.vocab_size(), .data_seed = {}},
      128, packing);
  Batch batch;
  double sum = 0, squares = 0;
  for (int step = 0; step < 40; ++step) {
    fill_batch(packer, 50, batch);
    for (size_t i = 0; i < batch.document_starts.size(); ++i) {
      auto t = static_cast<size_t>(batch.document_starts[i]);
      const size_t end = (t / 128 + 1) * 128;
      corpus.walk([&](const WordChoices& choices, Skill skill) {
        if (t == end) return -1;
        const int32_t token = batch.tokens[t++];
        int place = -1;
        double entropy = 0, own = 0;
        for (int j = 0; j < static_cast<int>(choices.words.size()); ++j) {
          if (!choices.allows(j)) continue;
          const double p = static_cast<double>(choices.weights[static_cast<size_t>(j)]) /
                           static_cast<double>(choices.total);
          entropy -= p * std::log(p);
          if (choices.words[static_cast<size_t>(j)] != token) continue;
          place = j;
          own = -std::log(p);
        }
        EXPECT_GE(place, 0);
        if (skill == Skill::branch) {
          sum += own - entropy;
          squares += (own - entropy) * (own - entropy);
        }
        return place;
      });
    }
  }
  return sum / std::sqrt(squares);
}

TEST_F(SynthTest, InOrderPackingKeepsTheFloorExact) {
  SynthOptions o = options("a");
  o.train_tokens = 400000;
  o.shard_tokens = 1000000;
  make_corpus(o);
  const DatasetShards shards = find_shards(o.folder);
  const StoryCorpus corpus(StorySettings::small());
  EXPECT_LT(std::abs(branch_bias(shards.train, corpus, Packing::in_order)), 4);
  // Best fit chooses stories by length: whether one goes on can be told from where it begins.
  EXPECT_GT(std::abs(branch_bias(shards.train, corpus, Packing::best_fit)), 6);
}

TEST_F(SynthTest, SameBytesOnAnyThreadCount) {
  const int threads = thread_count();
  set_thread_count(1);
  const CorpusInfo one = make_corpus(options("one"));
  set_thread_count(3);
  const CorpusInfo three = make_corpus(options("three"));
  set_thread_count(threads);
  for (size_t i = 0; i < one.train.shards.size(); ++i) {
    EXPECT_EQ(one.train.shards[i].sha256, three.train.shards[i].sha256);
    EXPECT_EQ(one.train.shards[i].floor_sha256, three.train.shards[i].floor_sha256);
  }
  EXPECT_EQ(read_file((root / "one/corpus.json").string()),
            read_file((root / "three/corpus.json").string()));
  SynthOptions other = options("other");
  other.seed = 1;
  EXPECT_NE(make_corpus(other).train.shards[0].sha256, one.train.shards[0].sha256);
}

TEST_F(SynthTest, ReusesAndRepairsItsFolder) {
  const SynthOptions o = options("a");
  const CorpusInfo first = make_corpus(o);
  const CorpusInfo again = make_corpus(o);
  EXPECT_TRUE(again.reused);
  EXPECT_EQ(again.train.shards[1].sha256, first.train.shards[1].sha256);
  EXPECT_EQ(again.val.floor, first.val.floor);
  fs::resize_file(root / "a/train_000001.bin", 2000);
  const CorpusInfo repaired = make_corpus(o);
  EXPECT_FALSE(repaired.reused);
  EXPECT_EQ(TokenShard((root / "a/train_000001.bin").string()).count(),
            first.train.shards[1].tokens);
  SynthOptions other = o;
  other.train_tokens = 40000;
  EXPECT_THROW(make_corpus(other), Error);
  fs::create_directories(root / "mine");
  std::ofstream(root / "mine/train_000000.bin") << "precious";
  EXPECT_THROW(make_corpus(options("mine")), Error);
  EXPECT_EQ(fs::file_size(root / "mine/train_000000.bin"), 8u);
  fs::create_directories(root / "empty");
  EXPECT_NO_THROW(make_corpus(options("empty")));
}

TEST_F(SynthTest, AnyTokenizer) {
  SynthOptions o = options("bytes");
  o.tokenizer = Tokenizer::byte_level({}, kNanochatSplit, {"<|bos|>"});
  o.corpus = "large";
  const CorpusInfo info = make_corpus(o);
  EXPECT_EQ(info.vocab_size, 257);
  // Nats a story do not depend on the tokenizer.
  EXPECT_NEAR(info.train.floor * static_cast<double>(info.train.tokens) /
                  static_cast<double>(info.train.documents),
              info.nats_per_story, 0.1 * info.nats_per_story);
  EXPECT_EQ(read_corpus_info(o.folder)->tokenizer_hash, o.tokenizer->content_hash());
}

TEST_F(SynthTest, Errors) {
  SynthOptions o = options("a");
  o.train_tokens = 0;
  EXPECT_THROW(make_corpus(o), Error);
  o = options("a");
  o.corpus = "huge";
  EXPECT_THROW(make_corpus(o), Error);
  EXPECT_FALSE(fs::exists(root / "a"));
  EXPECT_FALSE(read_corpus_info(root.string()));
  std::ofstream(root / "corpus.json") << R"({"format": "something"})";
  EXPECT_THROW(read_corpus_info(root.string()), Error);
  std::ofstream(root / "corpus.json") << R"({"format": "tightloop-corpus-1", "corpus": 3})";
  EXPECT_THROW(read_corpus_info(root.string()), Error);
}

}  // namespace
}  // namespace tightloop
