#include "tightloop/text/bpe_train.h"

#include <map>
#include <string>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"

namespace tightloop {
namespace {

using Ids = std::vector<int32_t>;

/// Text with a skewed choice of words over a small alphabet: many ties and repeated letters.
std::vector<std::string> random_documents(uint64_t seed, int count) {
  Rng rng(seed, 0);
  std::vector<std::string> words;
  for (int i = 0; i < 60; ++i) {
    std::string word;
    for (uint64_t n = 1 + rng.below(7); n > 0; --n) word += static_cast<char>('a' + rng.below(4));
    words.push_back(word);
  }
  std::vector<std::string> documents;
  for (int d = 0; d < count; ++d) {
    std::string text;
    for (uint64_t n = rng.below(30); n > 0; --n) {
      text += words[rng.below(1 + rng.below(words.size()))];
      text += std::string_view(" ,.\n\u00e91 ").substr(rng.below(4), 1);
    }
    documents.push_back(text + "\u00e9t\u00e9 123 \xff ...");
  }
  return documents;
}

std::vector<std::string_view> views(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

/// Merges by the rule as written: recount everything before each merge.
std::vector<std::string> train_slowly(const std::vector<std::string>& documents,
                                      const std::string& rule,
                                      int64_t merges) {
  const Splitter splitter(rule);
  Splitter::State state(splitter);
  std::vector<Ids> words;
  for (const std::string& document : documents) {
    // The documents are valid but for the byte 0xff.
    const size_t cut = document.find('\xff');
    for (std::string_view text :
         {std::string_view(document).substr(0, cut), std::string_view(document).substr(cut + 1)}) {
      for (int64_t at = 0; at < static_cast<int64_t>(text.size());) {
        const auto range = splitter.next(text, at, state);
        Ids word;
        for (int64_t i = range.begin; i < range.end; ++i)
          word.push_back(static_cast<uint8_t>(text[static_cast<size_t>(i)]));
        words.push_back(word);
        at = range.end;
      }
    }
  }
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back({static_cast<char>(byte)});
  for (int64_t m = 0; m < merges; ++m) {
    std::map<std::pair<int32_t, int32_t>, int64_t> counts;
    for (const Ids& word : words)
      for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    if (counts.empty()) break;
    auto best = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it)
      if (it->second > best->second) best = it;  // the map is sorted: ties stay with the smaller
    const auto [left, right] = best->first;
    const std::string joined =
        tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
    const auto known = std::find(tokens.begin(), tokens.end(), joined);
    const auto id = static_cast<int32_t>(known - tokens.begin());
    if (known == tokens.end())
      tokens.push_back(joined);
    else
      --m;
    for (Ids& word : words) {
      Ids merged;
      for (size_t i = 0; i < word.size();) {
        const bool here = i + 1 < word.size() && word[i] == left && word[i + 1] == right;
        merged.push_back(here ? id : word[i]);
        i += here ? 2 : 1;
      }
      word = merged;
    }
  }
  return tokens;
}

BpeTrainOptions options(int64_t merges) {
  BpeTrainOptions o;
  o.vocab_size = 256 + merges + static_cast<int64_t>(o.specials.size());
  return o;
}

TEST(BpeTrain, FollowsTheRule) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const auto documents = random_documents(seed, 40);
    BpeTrainer trainer(options(150));
    EXPECT_TRUE(trainer.add(views(documents)));
    const Tokenizer t = trainer.train();
    const auto expected = train_slowly(documents, kNanochatSplit, 150);
    ASSERT_EQ(t.vocab_size(), static_cast<int64_t>(expected.size()) + 9);
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_EQ(t.token_bytes(static_cast<int32_t>(i)), expected[i])
          << "seed " << seed << " id " << i;
    for (const std::string& text : documents) EXPECT_EQ(t.decode(t.encode(text)), text);
  }
}

TEST(BpeTrain, TiesOverlapsAndLayout) {
  // One chunk "aaaa" twice, "abab" twice: (a,a) 6, (a,b) 4, (b,a) 2.
  BpeTrainOptions o = options(3);
  o.split = "[^ ]+";
  BpeTrainer trainer(o);
  const std::vector<std::string> text = {"aaaa", "aaaa", "abab", "abab"};
  trainer.add(views(text));
  const Tokenizer t = trainer.train();
  EXPECT_EQ(t.token_bytes(256), "aa");
  EXPECT_EQ(t.token_bytes(257), "ab");
  // (ab,ab) and (aa,aa) both occur twice: (256,256) is the smaller pair.
  EXPECT_EQ(t.token_bytes(258), "aaaa");
  EXPECT_EQ(t.token_bytes(259), "<|bos|>");
  EXPECT_EQ(t.bos_id(), 259);
  EXPECT_EQ(t.token_bytes(267), "<|output_end|>");
  EXPECT_EQ(t.vocab_size(), 268);
}

TEST(BpeTrain, StopsWhenNoPairRemains) {
  BpeTrainer trainer(options(1000));
  const std::vector<std::string> text = {"abc", "abc"};
  trainer.add(views(text));
  EXPECT_EQ(trainer.train().vocab_size(), 256 + 2 + 9);
  BpeTrainer empty(options(10));
  EXPECT_EQ(empty.train().vocab_size(), 256 + 9);
}

TEST(BpeTrain, SameForAnyThreadsAndBatches) {
  const auto documents = random_documents(99, 500);
  const auto all = views(documents);
  const int before = thread_count();
  std::string first;
  for (int threads : {1, 2, 5}) {
    set_thread_count(threads);
    BpeTrainer trainer(options(200));
    const auto half = static_cast<std::ptrdiff_t>(all.size() / static_cast<size_t>(threads));
    trainer.add({all.begin(), all.begin() + half});
    trainer.add({all.begin() + half, all.end()});
    EXPECT_EQ(trainer.documents(), 500);
    const std::string json = trainer.train().to_json();
    if (first.empty()) first = json;
    EXPECT_EQ(json, first) << threads << " threads";
  }
  set_thread_count(before);
}

TEST(BpeTrain, CropsDocumentsAndStopsAfterTheLimit) {
  BpeTrainOptions o = options(50);
  o.max_document_chars = 4;
  o.max_chars = 8;
  BpeTrainer trainer(o);
  // Four, one and four characters: the third document passes the limit and is the last.
  const std::vector<std::string> text = {"\u00e9\u00e9\u00e9\u00e9xyxy", "q", "zzzzqqqq", "wwww"};
  EXPECT_FALSE(trainer.add(views(text)));
  EXPECT_EQ(trainer.documents(), 3);
  EXPECT_EQ(trainer.chars(), 9);
  EXPECT_FALSE(trainer.add(views(text)));
  EXPECT_EQ(trainer.documents(), 3);
  const Tokenizer t = trainer.train();
  EXPECT_TRUE(t.find("\u00e9"));
  EXPECT_TRUE(t.find("zz"));
  EXPECT_FALSE(t.find("xy"));
  EXPECT_FALSE(t.find("qq"));
  EXPECT_FALSE(t.find("ww"));
}

TEST(BpeTrain, ReportsProgress) {
  BpeTrainer trainer(options(300));
  const auto documents = random_documents(5, 200);
  trainer.add(views(documents));
  std::vector<int64_t> done;
  const Tokenizer t = trainer.train([&](int64_t merges_done, int64_t wanted) {
    EXPECT_EQ(wanted, 300);
    done.push_back(merges_done);
  });
  ASSERT_FALSE(done.empty());
  EXPECT_EQ(done.back(), t.vocab_size() - 256 - 9);
}

TEST(BpeTrain, BadOptions) {
  const auto refused = [](const BpeTrainOptions& o, ErrorKind kind) {
    try {
      BpeTrainer trainer(o);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.what();
    }
  };
  BpeTrainOptions o;
  o.vocab_size = 264;
  refused(o, ErrorKind::usage);
  o = {};
  o.max_chars = 0;
  refused(o, ErrorKind::usage);
  o = {};
  o.split = "(";
  refused(o, ErrorKind::data);
}

}  // namespace
}  // namespace tightloop
