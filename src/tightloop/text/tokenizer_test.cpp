#include "tightloop/text/tokenizer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/text/bpe_case.h"
#include "tightloop/text/split.h"
#include "tightloop/text/unicode.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

/// The folder of larger test data beside the source tree, empty when there is none.
fs::path shared_folder() {
  const char* source = std::getenv("TL_SOURCE_DIR");
  const fs::path folder = fs::path(source == nullptr ? "." : source) / ".." / "shared";
  return fs::exists(folder / "data" / "tokenizers") ? folder : fs::path();
}

#define SKIP_WITHOUT_SHARED() \
  if (shared_folder().empty()) GTEST_SKIP() << "no ../shared folder"

/// gpt2 or qwen3 out of that folder, loaded once.
const Tokenizer& published(const std::string& name) {
  static std::map<std::string, Tokenizer> loaded;
  const auto it = loaded.find(name);
  if (it != loaded.end()) return it->second;
  const fs::path path = shared_folder() / "data" / "tokenizers" / name;
  return loaded.emplace(name, Tokenizer::load(path.string())).first->second;
}

#ifdef TL_SANITIZED
constexpr size_t kLongRun = 256 << 10;
#else
constexpr size_t kLongRun = 4 << 20;  // a quadratic merge of as much would take hours
#endif

/// Checks that `call` throws Error of `kind` whose message has each of `parts`.
template <typename Call>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, Call&& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with: " << parts.at(0);
  } catch (const Error& error) {
    EXPECT_EQ(name_of(error.kind()), name_of(kind)) << error.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "message: " << error.what() << "\nexpected part: " << part;
  }
}

/// A small vocabulary in nanochat's layout: he, the, " t", " the", aa, aaaa, then two specials.
Tokenizer small(const std::string& split = kNanochatSplit) {
  const std::vector<std::pair<int32_t, int32_t>> merges = {{'h', 'e'}, {'t', 256}, {' ', 't'},
                                                           {' ', 257}, {'a', 'a'}, {260, 260}};
  return Tokenizer::byte_level(merges, split, {"<|bos|>", "<|bos|>2"});
}

std::string random_bytes(uint64_t seed, size_t n) {
  Rng rng(seed, 0);
  std::string text;
  for (size_t i = 0; i < n; ++i) text += static_cast<char>(rng.below(256));
  return text;
}

/// Random text out of pieces that exercise every rule: letters, digits, marks, blanks, newlines.
std::string random_text(uint64_t seed, size_t pieces) {
  const std::vector<std::string> all = {
      "a",       "the",    " the",    "A",      "'s",     "'S",
      "'\u017f", "'ll",    "7",       "12",     "3",      " ",
      "  ",      "\n",     "\r",      "\t",     "\r\n",   "...",
      "!?",      "\u00e9", "e\u0301", "\u00a0", "\u3000", "\u65e5\u672c",
      "\u0661",  "\u00bd", "\u180e",  "\u0085", "\u2028", "\U0001f44d\U0001f3fd",
      "-",       "x_y"};
  Rng rng(seed, 1);
  std::string text;
  for (size_t i = 0; i < pieces; ++i) text += all[rng.below(all.size())];
  return text;
}

// ---- splitting ----

std::vector<std::string> chunks(const std::string& rule, std::string_view text) {
  const Splitter splitter(rule);
  Splitter::State state(splitter);
  std::vector<std::string> out;
  for (int64_t at = 0; at < static_cast<int64_t>(text.size());) {
    const auto range = splitter.next(text, at, state);
    EXPECT_EQ(range.begin, at) << "a gap";
    out.emplace_back(text.substr(static_cast<size_t>(range.begin),
                                 static_cast<size_t>(range.end - range.begin)));
    at = range.end;
  }
  return out;
}

using Strings = std::vector<std::string>;

TEST(Split, NanochatRuleByRule) {
  const auto cut = [](std::string_view text) { return chunks(kNanochatSplit, text); };
  EXPECT_EQ(cut("I'll don'T we'\u017f x's"),
            (Strings{"I", "'ll", " don", "'T", " we", "'\u017f", " x", "'s"}));
  EXPECT_EQ(cut("hello (world) \u00e9t\u00e9"),
            (Strings{"hello", " (", "world", ")", " \u00e9t\u00e9"}));
  EXPECT_EQ(cut("12345 \u0661\u0662\u0663"),
            (Strings{"12", "34", "5", " ", "\u0661\u0662", "\u0663"}));
  EXPECT_EQ(cut("a !!\r\n\nb"), (Strings{"a", " !!\r\n\n", "b"}));
  EXPECT_EQ(cut("a  \n \n  b"), (Strings{"a", "  \n \n", " ", " b"}));
  EXPECT_EQ(cut("a    b"), (Strings{"a", "   ", " b"}));
  EXPECT_EQ(cut("a   "), (Strings{"a", "   "}));
  // U+0085 is white space, U+180E is not.
  EXPECT_EQ(cut("!\u0085!"), (Strings{"!", "\u0085", "!"}));
  EXPECT_EQ(cut("!\u180e!"), (Strings{"!\u180e!"}));
  EXPECT_EQ(cut("\u180e\u180ea"), (Strings{"\u180e\u180e", "a"}));
}

TEST(Split, Gpt2AndQwenDifferWhereTheyMust) {
  EXPECT_EQ(chunks(kGpt2Split, "we'LL go 1234"), (Strings{"we", "'", "LL", " go", " 1234"}));
  EXPECT_EQ(chunks(kQwenSplit, "we'LL go 123"), (Strings{"we", "'LL", " go", " ", "1", "2", "3"}));
  EXPECT_EQ(chunks(kGpt2Split, "a\n\nb"), (Strings{"a", "\n", "\n", "b"}));
  EXPECT_EQ(chunks(kQwenSplit, "a\n\nb"), (Strings{"a", "\n\n", "b"}));
}

TEST(Split, BadRules) {
  EXPECT_EQ(split_rule("gpt2"), kGpt2Split);
  expect_error(ErrorKind::usage, {"gpt3", "gpt2"}, [] { split_rule("gpt3"); });
  expect_error(ErrorKind::data, {"not a regular expression", "(a"}, [] { Splitter("(a"); });
  expect_error(ErrorKind::data, {"expected at most"}, [] { Splitter(std::string(1 << 20, 'a')); });
  // Exponential backtracking ends in an error, not in a hang.
  const Splitter slow("(?:a+)+b|c");
  Splitter::State state(slow);
  expect_error(ErrorKind::data, {"gave up at byte 0"},
               [&] { slow.next(std::string(100, 'a'), 0, state); });
  // Empty matches and \K are passed over.
  const Splitter empty("x*");
  Splitter::State empty_state(empty);
  const auto range = empty.next("\u00e9yx", 0, empty_state);
  EXPECT_EQ(range.begin, 3);
  EXPECT_EQ(range.end, 4);
}

// ---- encode and decode ----

TEST(TokenizerEncode, MergesByRankLeftmostFirst) {
  const Tokenizer t = small();
  EXPECT_EQ(t.vocab_size(), 256 + 6 + 2);
  EXPECT_EQ(t.encode("the"), (Ids{257}));
  EXPECT_EQ(t.encode(" the the"), (Ids{259, 259}));
  EXPECT_EQ(t.encode("that"), (Ids{'t', 'h', 'a', 't'}));
  EXPECT_EQ(t.encode("aaaaa"), (Ids{261, 'a'}));
  EXPECT_EQ(t.encode("aaa"), (Ids{260, 'a'}));
  EXPECT_EQ(t.encode(""), (Ids{}));
}

/// The rule as written, without any cleverness.
Ids merge_slowly(const Tokenizer& t, std::string_view chunk, const Json& merges) {
  std::map<std::pair<std::string, std::string>, size_t> rank;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto bytes = [&](size_t k) {
      return *from_byte_alphabet(merges[i][k].get<std::string>());
    };
    rank[{bytes(0), bytes(1)}] = i;
  }
  std::vector<std::string> parts;
  for (char c : chunk) parts.push_back({c});
  while (true) {
    size_t best = merges.size(), where = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = rank.find({parts[i], parts[i + 1]});
      if (it != rank.end() && it->second < best) best = it->second, where = i;
    }
    if (best == merges.size()) break;
    parts[where] += parts[where + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(where) + 1);
  }
  Ids ids;
  for (const std::string& part : parts) ids.push_back(*t.find(part));
  return ids;
}

TEST(TokenizerEncode, AllPathsFollowTheRule) {
  // Random merges over two letters; lengths around the cache's, the scan's and the heap's limits.
  Rng rng(7, 0);
  std::vector<std::pair<int32_t, int32_t>> merges = {{'a', 'b'}, {'b', 'a'}, {'a', 'a'}};
  std::set<std::pair<int32_t, int32_t>> seen(merges.begin(), merges.end());
  const auto any = [&] {
    const auto i = static_cast<int32_t>(rng.below(merges.size() + 2));
    return i < 2 ? 'a' + i : 254 + i;
  };
  while (merges.size() < 40) {
    auto next = merges;
    next.push_back({any(), any()});
    if (!seen.insert(next.back()).second) continue;
    if (Tokenizer::byte_level(next, "(?s).+", {}).vocab_size() ==
        256 + static_cast<int64_t>(next.size()))
      merges = next;
  }
  const Tokenizer t = Tokenizer::byte_level(merges, "(?s).+", {});
  const Json listed = Json::parse(t.to_json())["model"]["merges"];
  for (size_t length : {2, 3, 7, 8, 9, 14, 15, 16, 17, 40, 63, 64, 65, 66, 200}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::string text;
      while (text.size() < length) text += rng.below(3) == 0 ? 'b' : 'a';
      const Ids expected = merge_slowly(t, text, listed);
      EXPECT_EQ(t.encode(text), expected) << text;
      EXPECT_EQ(t.encode(text), expected) << "second time, from the cache: " << text;
      EXPECT_EQ(t.decode(expected), text);
    }
  }
}

TEST(TokenizerEncode, LongRunsAreNotQuadratic) {
  const Tokenizer t = small();
  const size_t n = kLongRun;
  const std::string text(n, 'a');
  const Ids ids = t.encode(text);
  EXPECT_EQ(ids, Ids(n / 4, 261));
  // More steps back than PCRE2's own limit allows.
  const std::string blanks = std::string(3 * n, ' ') + "x";
  EXPECT_EQ(t.decode(t.encode(blanks)), blanks);
  for (const std::string& piece : {std::string(" "), std::string("\n"), std::string("!"),
                                   std::string("\u00e9"), std::string("7")}) {
    std::string run;
    while (run.size() < n / 4) run += piece;
    for (const char* rule : {kNanochatSplit, kGpt2Split, kQwenSplit}) {
      const Tokenizer other = small(rule);
      EXPECT_EQ(other.decode(other.encode(run)), run);
      EXPECT_EQ(other.decode(other.encode(run + "x")), run + "x");
    }
  }
}

TEST(TokenizerEncode, AnyBytesComeBack) {
  for (const char* rule : {kNanochatSplit, kGpt2Split, kQwenSplit}) {
    const Tokenizer t = small(rule);
    for (uint64_t seed = 0; seed < 40; ++seed) {
      const std::string noise = random_bytes(seed, 1 + 17 * seed);
      EXPECT_EQ(t.decode(t.encode(noise)), noise);
      const std::string text = random_text(seed, 50);
      EXPECT_EQ(t.decode(t.encode(text)), text);
      // Valid text broken in the middle of a character.
      const std::string broken = text.substr(0, text.size() / 2) + "\xe2\x80" + text.substr(1);
      EXPECT_EQ(t.decode(t.encode(broken)), broken);
    }
  }
  EXPECT_EQ(small().encode("the\xff the"), (Ids{257, 0xff, 259}));
}

TEST(TokenizerEncode, SpecialTokensOnlyOnRequest) {
  const Tokenizer t = small();
  EXPECT_EQ(t.bos_id(), 262);
  EXPECT_EQ(t.eos_id(), 262);
  EXPECT_EQ(t.special_id("<|bos|>2"), 263);
  EXPECT_EQ(t.special_id("<|eos|>"), std::nullopt);
  EXPECT_TRUE(t.is_special(262));
  EXPECT_FALSE(t.is_special(261));
  const std::string text = "the<|bos|><|bos|>2 the<|bo<|bos|>";
  EXPECT_EQ(t.encode(text, SpecialTokens::recognise),
            (Ids{257, 262, 263, 259, '<', '|', 'b', 'o', 262}));
  for (int32_t id : t.encode(text)) EXPECT_LT(id, 262);
  EXPECT_EQ(t.decode(t.encode(text)), text);
  EXPECT_EQ(t.decode(t.encode(text, SpecialTokens::recognise)), text);
  const std::vector<int32_t> lengths = t.byte_lengths();
  EXPECT_EQ(lengths[0], 1);
  EXPECT_EQ(lengths[259], 4);
  EXPECT_EQ(lengths[262], 0);
  EXPECT_EQ(t.token_bytes(262), "<|bos|>");
}

TEST(TokenizerEncode, BatchEqualsOneByOneForAnyThreads) {
  const Tokenizer t = small();
  std::vector<std::string> texts;
  for (uint64_t seed = 0; seed < 300; ++seed) texts.push_back(random_text(seed, seed % 60));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const int before = thread_count();
  for (int threads : {1, 3}) {
    set_thread_count(threads);
    const auto batch = t.encode_batch(views);
    ASSERT_EQ(batch.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(batch[i], t.encode(texts[i]));
  }
  set_thread_count(before);
}

TEST(TokenizerEncode, NfcIsAppliedBeforeSplitting) {
  Json file = Json::parse(small(kQwenSplit).to_json());
  file["normalizer"] = {{"type", "NFC"}};
  const Tokenizer t = Tokenizer::from_json(file.dump());
  EXPECT_EQ(t.decode(t.encode("cafe\u0301 \u212b \u1100\u1161\u11a8 x\u0323\u0307 \u2126")),
            "caf\u00e9 \u00c5 \uac01 \u1e8b\u0323 \u03a9");
  EXPECT_EQ(t.encode("cafe\u0301"), t.encode("caf\u00e9"));
  EXPECT_EQ(t.decode(t.encode("a\u0327\u0301\xff e\u0301")), "\u00e1\u0327\xff \u00e9");
  EXPECT_EQ(Json::parse(t.to_json())["normalizer"]["type"], "NFC");
}

TEST(TokenizerDecode, IdsOutOfRange) {
  const Tokenizer t = small();
  expect_error(ErrorKind::data, {"token id 264", "0 to 263"}, [&] { t.decode(Ids{1, 264}); });
  expect_error(ErrorKind::data, {"token id -1"}, [&] { t.token_bytes(-1); });
  expect_error(ErrorKind::usage, {"merge 0", "999"}, [] {
    Tokenizer::byte_level(std::vector<std::pair<int32_t, int32_t>>{{1, 999}}, kGpt2Split, {});
  });
}

TEST(TokenizerBuild, MergeToTheSameBytesTakesNoNewId) {
  const std::vector<std::pair<int32_t, int32_t>> merges = {
      {'a', 'b'}, {'b', 'c'}, {256, 'c'}, {'a', 257}, {258, 'd'}};
  const Tokenizer t = Tokenizer::byte_level(merges, "(?s).+", {"<|bos|>"});
  EXPECT_EQ(t.vocab_size(), 256 + 4 + 1);
  EXPECT_EQ(t.token_bytes(258), "abc");
  EXPECT_EQ(t.token_bytes(259), "abcd");
  EXPECT_EQ(Tokenizer::from_json(t.to_json()).content_hash(), t.content_hash());
}

// ---- files ----

TEST(TokenizerFiles, JsonRoundTrip) {
  for (const char* rule : {kNanochatSplit, kGpt2Split, kQwenSplit}) {
    const Tokenizer t = small(rule);
    const Tokenizer again = Tokenizer::from_json(t.to_json());
    EXPECT_EQ(again.to_json(), t.to_json());
    EXPECT_EQ(again.content_hash(), t.content_hash());
    EXPECT_EQ(again.vocab_size(), t.vocab_size());
    EXPECT_EQ(again.split_rule(), rule);
    EXPECT_EQ(again.bos_id(), t.bos_id());
    for (int32_t id = 0; id < t.vocab_size(); ++id)
      EXPECT_EQ(again.token_bytes(id), t.token_bytes(id));
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const std::string text = random_text(seed, 40) + "<|bos|>" + random_bytes(seed, 20);
      EXPECT_EQ(again.encode(text, SpecialTokens::recognise),
                t.encode(text, SpecialTokens::recognise));
    }
  }
  EXPECT_NE(small(kGpt2Split).content_hash(), small(kQwenSplit).content_hash());
}

TEST(TokenizerFiles, Gpt2RoundTrip) {
  const std::vector<std::pair<int32_t, int32_t>> merges = {{'h', 'e'}, {'#', '#'}, {' ', 't'}};
  const Tokenizer t = Tokenizer::byte_level(merges, kGpt2Split, {"<|endoftext|>"});
  const Gpt2Files files = t.to_gpt2();
  EXPECT_EQ(files.merges_txt, "#version: 0.2\nh e\n# #\n\u0120 t\n");
  const Tokenizer again = Tokenizer::from_gpt2(files);
  EXPECT_EQ(again.content_hash(), t.content_hash());
  EXPECT_EQ(again.encode("he <|endoftext|>##", SpecialTokens::recognise),
            (Ids{256, ' ', 259, 257}));
  // CRLF line ends and no version line.
  const Tokenizer crlf = Tokenizer::from_gpt2({files.vocab_json, "h e\r\n# #\r\n\u0120 t\r\n"});
  EXPECT_EQ(crlf.content_hash(), t.content_hash());
  expect_error(ErrorKind::unsupported, {"split rule"}, [] { small().to_gpt2(); });
  expect_error(ErrorKind::unsupported, {"special token"}, [] { small(kGpt2Split).to_gpt2(); });
}

TEST(TokenizerFiles, FolderLookUp) {
  const fs::path folder = fs::path(testing::TempDir()) / "tl_tokenizer_files";
  fs::remove_all(folder);
  fs::create_directories(folder);
  expect_error(ErrorKind::io, {"no tokenizer here", "tokenizer.json"},
               [&] { Tokenizer::load(folder.string()); });
  expect_error(ErrorKind::io, {"absent.json"},
               [&] { Tokenizer::load((folder / "absent.json").string()); });
  const Tokenizer t = Tokenizer::byte_level(std::vector<std::pair<int32_t, int32_t>>{{'a', 'b'}},
                                            kGpt2Split, {"<|endoftext|>"});
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  write("encoder.json", t.to_gpt2().vocab_json);
  write("vocab.bpe", t.to_gpt2().merges_txt);
  EXPECT_EQ(Tokenizer::load(folder.string()).content_hash(), t.content_hash());
  write("vocab.bpe", "a b\na c\n");
  expect_error(ErrorKind::data, {"vocab.bpe: line 2", "\"ac\" is not in the vocabulary"},
               [&] { Tokenizer::load(folder.string()); });
  write("tokenizer.json", small().to_json());
  EXPECT_EQ(Tokenizer::load(folder.string()).content_hash(), small().content_hash());
  fs::remove_all(folder);
}

TEST(TokenizerFiles, OlderForms) {
  Json file = Json::parse(small(kGpt2Split).to_json());
  // Merges as strings, no model type, ByteLevel inside a sequence.
  for (Json& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  file["model"].erase("type");
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {file["pre_tokenizer"]}}};
  EXPECT_EQ(Tokenizer::from_json(file.dump()).content_hash(), small(kGpt2Split).content_hash());
  // Added tokens that the model's vocabulary does not list.
  file["model"]["vocab"].erase("<|bos|>");
  file["model"]["vocab"].erase("<|bos|>2");
  EXPECT_EQ(Tokenizer::from_json(file.dump()).content_hash(), small(kGpt2Split).content_hash());
}

TEST(TokenizerFiles, IgnoreMerges) {
  Json file = Json::parse(small().to_json());
  file["model"]["vocab"].erase("<|bos|>2");
  file["added_tokens"].erase(1);
  file["model"]["vocab"]["zzz"] = 263;  // no merge makes it
  EXPECT_EQ(Tokenizer::from_json(file.dump()).encode("zzz"), (Ids{'z', 'z', 'z'}));
  file["model"]["ignore_merges"] = true;
  const Tokenizer t = Tokenizer::from_json(file.dump());
  EXPECT_EQ(t.encode("zzz"), (Ids{263}));
  EXPECT_EQ(t.encode("zzzz"), (Ids{'z', 'z', 'z', 'z'}));
  EXPECT_EQ(Tokenizer::from_json(t.to_json()).encode("zzz"), (Ids{263}));
}

TEST(TokenizerFiles, Hostile) {
  const Json good = Json::parse(small().to_json());
  const auto broken = [&](ErrorKind kind, const std::vector<std::string>& parts, auto&& change) {
    Json file = good;
    change(file);
    expect_error(kind, parts, [&] { Tokenizer::from_json(file.dump(), "my.json"); });
  };
  const auto data = ErrorKind::data, unsupported = ErrorKind::unsupported;
  broken(data, {"my.json: model.merges[1]", "\"xx\" is not in the vocabulary"}, [](Json& f) {
    f["model"]["merges"][1] = {"xx", "he"};
  });
  broken(data, {"my.json: model.merges[0]", "one blank"},
         [](Json& f) { f["model"]["merges"][0] = "h e x"; });
  broken(data, {"my.json: model.merges[0]", "two tokens"},
         [](Json& f) { f["model"]["merges"][0] = {"h"}; });
  broken(data, {"my.json: model.merges[0]", "got 7, expected a string"},
         [](Json& f) { f["model"]["merges"][0] = 7; });
  broken(data, {"merges[2] repeats merges[1]"},
         [](Json& f) { f["model"]["merges"][2] = f["model"]["merges"][1]; });
  broken(data, {"model.merges", "got nothing, expected a list"},
         [](Json& f) { f["model"].erase("merges"); });
  broken(data, {"my.json: model.vocab[", "id 7 is taken by \"he\""},
         [](Json& f) { f["model"]["vocab"]["he"] = 7; });
  broken(data, {"model.vocab[\"he\"]", "got 2147483648, expected an id from 0 to 263"},
         [](Json& f) { f["model"]["vocab"]["he"] = 2147483648; });
  broken(data, {"model.vocab[\"he\"]", "got 18446744073709551615"},
         [](Json& f) { f["model"]["vocab"]["he"] = 18446744073709551615ull; });
  broken(data, {"model.vocab[\"he\"]", "got -1"}, [](Json& f) { f["model"]["vocab"]["he"] = -1; });
  broken(data, {"model.vocab[\"he\"]", "got 1.5, expected an id"},
         [](Json& f) { f["model"]["vocab"]["he"] = 1.5; });
  broken(data, {"model.vocab", "expected an object"}, [](Json& f) { f["model"]["vocab"] = {1}; });
  broken(data, {"not made of byte-level letters"}, [](Json& f) {
    f["model"]["vocab"].erase("he");
    f["model"]["vocab"]["\u3042"] = 256;
    f["model"]["merges"] = Json::array();
  });
  broken(data, {"added_tokens[0].id", "\"<|bos|>\" has id 262 already"},
         [](Json& f) { f["added_tokens"][0]["id"] = 5; });
  broken(data, {"added_tokens[1].content", "expected a string"},
         [](Json& f) { f["added_tokens"][1].erase("content"); });
  broken(data, {"two added tokens have id 262"},
         [](Json& f) { f["added_tokens"][1] = f["added_tokens"][0]; });
  broken(data, {"has no name"}, [](Json& f) {
    f["added_tokens"][1]["content"] = "";
    f["model"]["vocab"].erase("<|bos|>2");
  });
  broken(unsupported, {"added_tokens[0].lstrip"},
         [](Json& f) { f["added_tokens"][0]["lstrip"] = true; });
  broken(data, {"not a regular expression"},
         [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; });
  broken(unsupported, {"pre_tokenizer.pretokenizers[0].behavior"},
         [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; });
  broken(unsupported, {"pre_tokenizer.pretokenizers[1].type", "Metaspace"},
         [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["type"] = "Metaspace"; });
  broken(unsupported, {"pre_tokenizer", "null"}, [](Json& f) { f["pre_tokenizer"] = nullptr; });
  broken(unsupported, {"normalizer.type", "NFKC"}, [](Json& f) {
    f["normalizer"] = {{"type", "NFKC"}};
  });
  broken(unsupported, {"model.type", "Unigram"}, [](Json& f) { f["model"]["type"] = "Unigram"; });
  broken(unsupported, {"model.dropout"}, [](Json& f) { f["model"]["dropout"] = 0.1; });
  broken(unsupported, {"model.byte_fallback"}, [](Json& f) { f["model"]["byte_fallback"] = true; });
  broken(unsupported, {"decoder.type"}, [](Json& f) { f["decoder"] = {{"type", "Fuse"}}; });
  broken(data, {"the vocabulary is empty"}, [](Json& f) {
    f["model"]["vocab"] = Json::object();
    f["model"]["merges"] = f["added_tokens"] = Json::array();
  });

  const std::string text = good.dump();
  for (size_t keep : {size_t{0}, size_t{1}, text.size() / 2, text.size() - 1})
    expect_error(data, {"my.json"}, [&] { Tokenizer::from_json(text.substr(0, keep), "my.json"); });
  for (const char* foreign : {"[]", "17", "{}", "\"x\"", "\x89PNG", "{\"model\":{}}"})
    expect_error(data, {"my.json"}, [&] { Tokenizer::from_json(foreign, "my.json"); });
  expect_error(data, {"my.json"},
               [&] { Tokenizer::from_json(std::string(1 << 20, '['), "my.json"); });
  expect_error(data, {"merges.txt: line 1", "one blank"}, [&] {
    Tokenizer::from_gpt2({"{\"a\":0}", "abc\n"});
  });
  expect_error(data, {"vocab.json: top level", "expected an object"}, [&] {
    Tokenizer::from_gpt2({"[]", ""});
  });
}

TEST(TokenizerFiles, MissingByteIsAnErrorWhenItIsNeeded) {
  Json file = Json::parse(small().to_json());
  const Json vocab = file["model"]["vocab"];
  Json smaller = Json::object();
  for (const auto& [name, id] : vocab.items())
    if (name != "Q") smaller[name] = id > 'Q' ? id.get<int>() - 1 : id.get<int>();
  file["model"]["vocab"] = smaller;
  for (Json& token : file["added_tokens"]) token["id"] = token["id"].get<int>() - 1;
  const Tokenizer t = Tokenizer::from_json(file.dump());
  EXPECT_EQ(t.decode(t.encode("the aRe")), "the aRe");
  expect_error(ErrorKind::data, {"no token for byte 0x51"}, [&] { t.encode("aQ"); });
  expect_error(ErrorKind::data, {"no token for byte 0x51"},
               [&] { t.encode(std::string(100, 'Q')); });
}

/// Every single-byte change of a small file either loads or is an Error, nothing else.
TEST(TokenizerFiles, MutatedFilesNeverCrash) {
  const std::vector<std::pair<int32_t, int32_t>> merges = {{'h', 'e'}};
  const std::string text =
      Json::parse(Tokenizer::byte_level(merges, kNanochatSplit, {"<|bos|>"}).to_json()).dump();
  Rng rng(3, 0);
  int loaded = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string mutated = text;
    // Mostly outside the long vocabulary, so that every field is hit.
    const size_t at = rng.below(2) == 0 ? rng.below(700) : rng.below(text.size());
    mutated[at] =
        static_cast<char>(rng.below(2) == 0 ? rng.below(256) : "{}[]\",:019ntf"[rng.below(13)]);
    try {
      const Tokenizer t = Tokenizer::from_json(mutated);
      t.encode("the hero's 12 <|bos|>", SpecialTokens::recognise);
      ++loaded;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(loaded, 100);
  EXPECT_GT(refused, 100);
}

// ---- word level ----

Tokenizer story_words() {
  return Tokenizer::word_level({"Tom", "went", "to", "the", "park", ".", ",", "o'clock", "'s", "3"},
                               {"<|bos|>"});
}

TEST(TokenizerWords, EncodeAndDecode) {
  const Tokenizer t = story_words();
  EXPECT_TRUE(t.is_word_level());
  EXPECT_EQ(t.vocab_size(), 11);
  EXPECT_EQ(t.bos_id(), 10);
  const Ids ids = t.encode("<|bos|>Tom went, to the\n park .3 o'clock.", SpecialTokens::recognise);
  EXPECT_EQ(ids, (Ids{10, 0, 1, 6, 2, 3, 4, 5, 9, 7, 5}));
  EXPECT_EQ(t.decode(ids), "<|bos|>Tom went, to the park. 3 o'clock.");
  EXPECT_EQ(t.decode(Ids{0, 8, 4}), "Tom's park");
  EXPECT_EQ(t.find("park"), 4);
  EXPECT_EQ(t.find(" park"), 4);
  EXPECT_EQ(t.token_bytes(4), " park");
  EXPECT_EQ(t.byte_lengths()[4], 5);
  EXPECT_EQ(t.byte_lengths()[5], 1);
  EXPECT_EQ(t.byte_lengths()[10], 0);
  std::string streamed;
  std::optional<int32_t> previous;
  for (int32_t id : ids) {
    t.decode_next(previous, id, streamed);
    previous = id;
  }
  EXPECT_EQ(streamed, t.decode(ids));
  expect_error(ErrorKind::data, {"\"dragon\" is not in the vocabulary"},
               [&] { t.encode("Tom went dragon"); });
  expect_error(ErrorKind::data, {"valid UTF-8"}, [&] { t.encode("Tom \xff"); });
  expect_error(ErrorKind::unsupported, {"word-level"}, [&] { t.to_gpt2(); });
}

TEST(TokenizerWords, FilesAndUnknownWords) {
  const Tokenizer t = story_words();
  const Tokenizer again = Tokenizer::from_json(t.to_json());
  EXPECT_EQ(again.content_hash(), t.content_hash());
  EXPECT_TRUE(again.is_word_level());
  EXPECT_EQ(again.decode(again.encode("Tom 's park, the.")), "Tom's park, the.");
  const Tokenizer unknown = Tokenizer::word_level({"a", "b"}, {"<|unk|>", "<|bos|>"});
  EXPECT_EQ(unknown.encode("a x b"), (Ids{0, 2, 1}));
  EXPECT_EQ(Tokenizer::from_json(unknown.to_json()).encode("a x b"), (Ids{0, 2, 1}));
  // Plain files: white space alone, decoded with blanks.
  Json file = Json::parse(t.to_json());
  file["pre_tokenizer"] = {{"type", "WhitespaceSplit"}};
  file["decoder"] = nullptr;
  const Tokenizer plain = Tokenizer::from_json(file.dump());
  EXPECT_EQ(plain.decode(plain.encode("Tom went .")), "Tom went .");
  expect_error(ErrorKind::data, {"\"went.\""}, [&] { plain.encode("Tom went."); });
}

TEST(TokenizerWords, BadWords) {
  for (const char* word : {"", "two words", "end.", " ", "\xff"})
    expect_error(ErrorKind::usage, {"word 1"}, [&] { Tokenizer::word_level({"ok", word}, {}); });
  expect_error(ErrorKind::data, {"tokens 0 and 1"}, [] { Tokenizer::word_level({"a", "a"}, {}); });
  const Tokenizer lines = Tokenizer::word_level({"a", "\n", "."}, {});
  EXPECT_EQ(lines.decode(lines.encode("a.\n a a")), "a.\na a");
}

// ---- Unicode ----

TEST(Unicode, ValidPrefix) {
  EXPECT_EQ(valid_utf8_prefix("plain ascii, longer than eight"), 30);
  EXPECT_EQ(valid_utf8_prefix("\u00e9\u20ac\U0001f44d"), 9);
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80",
                          "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff",
                          "\xe2\x82", "\xf0\x9f\x91", "\xc3", "\xe2\x28\xa1"})
    EXPECT_EQ(valid_utf8_prefix(std::string("ab") + bad), 2) << bad;
  EXPECT_EQ(first_code_points("\u00e9\u20acx\xff\xffy", 4), "\u00e9\u20acx\xff");
  EXPECT_EQ(count_code_points("\u00e9\u20acx\xff\xffy"), 6);
}

TEST(Unicode, ByteAlphabetIsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  std::string letters;
  append_byte_alphabet(all, letters);
  EXPECT_EQ(count_code_points(letters), 256);
  EXPECT_EQ(from_byte_alphabet(letters), all);
  letters.clear();
  append_byte_alphabet(" \n", letters);
  EXPECT_EQ(letters, "\u0120\u010a");
  EXPECT_EQ(from_byte_alphabet(" "), std::nullopt);
  EXPECT_EQ(from_byte_alphabet("\u3042"), std::nullopt);
}

// ---- data kept beside the source tree ----

TEST(TokenizerGolden, ParityCases) {
  SKIP_WITHOUT_SHARED();
  int found = 0;
  for (const auto& entry : fs::directory_iterator(shared_folder() / "golden")) {
    if (!entry.path().filename().string().starts_with("bpe-")) continue;
    ++found;
    const BpeCaseResult result = run_bpe_case(entry.path().string());
    EXPECT_GT(result.cases, 0);
    EXPECT_EQ(result.vocab_size, result.expected_vocab_size);
    EXPECT_TRUE(result.passed()) << entry.path();
    for (const BpeFailure& failure : result.failures) {
      EXPECT_EQ(failure.got, failure.expected) << failure.text;
      EXPECT_EQ(failure.decoded, failure.text);
    }
    // Written and read again, it is the same tokenizer.
    const Tokenizer t = Tokenizer::load((entry.path() / "tokenizer.json").string());
    EXPECT_EQ(Tokenizer::from_json(t.to_json()).content_hash(), t.content_hash());
  }
  EXPECT_GT(found, 0);
}

TEST(TokenizerGolden, PublishedVectors) {
  SKIP_WITHOUT_SHARED();
  const fs::path folder = shared_folder() / "data" / "tokenizers";
  for (const auto& [tokenizer, vectors] : {std::pair("gpt2", "gpt-2"), {"qwen3", "qwen2"}}) {
    const Tokenizer& t = published(tokenizer);
    std::string left = read_file((folder / "vectors" / vectors).string() + ".inp");
    std::istringstream lines(read_file((folder / "vectors" / vectors).string() + ".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const size_t end = left.find(separator);
      const std::string text = left.substr(0, end);
      left = end == std::string::npos ? "" : left.substr(end + separator.size());
      Ids expected;
      std::istringstream numbers(line);
      for (int32_t id; numbers >> id;) expected.push_back(id);
      EXPECT_EQ(t.encode(text), expected) << vectors << ": " << text;
      EXPECT_EQ(t.decode(expected), text);
    }
    EXPECT_EQ(count, 46);  // the 47th text is empty
    EXPECT_EQ(left, "");
  }
}

TEST(TokenizerGolden, WholeFiles) {
  SKIP_WITHOUT_SHARED();
  const fs::path data = shared_folder() / "data";
  const Json golden = read_json((data / "tokenizers" / "golden.json").string());
  for (const char* name : {"gpt2", "qwen3"}) {
    const Tokenizer& t = published(name);
    for (const auto& [file, expected] : golden.at(name).items()) {
      const std::string text = read_file((data / "text" / file).string());
      const Ids ids = t.encode(text, SpecialTokens::recognise);
      EXPECT_EQ(ids.size(), expected.at("tokens").get<size_t>()) << name << " " << file;
      std::string bytes;
      for (int32_t id : ids)
        for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(id >> shift);
      EXPECT_EQ(sha256_hex(bytes), expected.at("sha256_u32le").get<std::string>())
          << name << " " << file;
      EXPECT_TRUE(t.decode(ids) == text) << name << " " << file;
    }
  }
}

TEST(TokenizerGolden, Qwen3) {
  SKIP_WITHOUT_SHARED();
  const Tokenizer& t = published("qwen3");
  EXPECT_EQ(t.vocab_size(), 151669);
  EXPECT_EQ(t.split_rule(), kQwenSplit);
  EXPECT_EQ(t.special_id("<think>"), 151667);
  EXPECT_FALSE(t.is_special(151667));
  EXPECT_EQ(t.eos_id(), 151643);
}

}  // namespace
}  // namespace tightloop
