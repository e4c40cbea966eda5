#include "tightloop/train/data/pack.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/train/data/loader.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;
using Tokens = std::vector<int32_t>;

constexpr int32_t kBos{99};

struct Folder {
  fs::path path;
  explicit Folder(const std::string& name)
      : path(fs::temp_directory_path() / ("tl_pack_" + name + "_" + std::to_string(getpid()))) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

void write_shard(const std::string& path, const Tokens& tokens, bool floor = false) {
  TokenShardWriter writer(path, 100000);
  writer.append(tokens);
  writer.finish();
  if (!floor) return;
  std::vector<float> nats;
  std::vector<uint8_t> classes;
  for (const int32_t token : tokens) {
    nats.push_back(static_cast<float>(token) * 0.5f);
    classes.push_back(static_cast<uint8_t>(token % 6));
  }
  write_floor_file(floor_path(path), nats, classes);
}

/// Documents of random lengths; the tokens number the documents so that each can be recognised.
std::vector<Tokens> make_documents(int count, int longest, uint64_t seed) {
  Rng rng(seed, 0);
  std::vector<Tokens> out;
  for (int d = 0; d < count; ++d) {
    Tokens doc{kBos};
    const auto length = static_cast<int>(rng.below(static_cast<uint64_t>(longest)));
    for (int i = 0; i < length; ++i)
      doc.push_back(
          static_cast<int32_t>(100 + (static_cast<int64_t>(seed) * 7919 + d * 31 + i) % 60000));
    out.push_back(std::move(doc));
  }
  return out;
}

Tokens joined(const std::vector<Tokens>& documents) {
  Tokens out;
  for (const Tokens& doc : documents) out.insert(out.end(), doc.begin(), doc.end());
  return out;
}

struct Row {
  Tokens tokens;
  std::vector<int32_t> starts;
  bool operator==(const Row&) const = default;
};

/// nanochat's rule word for word, on whole documents held in memory.
class PlainPacker {
 public:
  PlainPacker(std::function<Tokens()> next, size_t capacity)
      : next_(std::move(next)), capacity_(capacity) {}
  Row row() {
    Row out;
    while (out.tokens.size() < capacity_) {
      while (buffer_.size() < 1000)
        for (int i = 0; i < 128; ++i) buffer_.push_back(next_());
      const size_t room = capacity_ - out.tokens.size();
      int best = -1;
      for (int i = 0; i < static_cast<int>(buffer_.size()); ++i)
        if (buffer_[i].size() <= room && (best < 0 || buffer_[i].size() > buffer_[best].size()))
          best = i;
      if (best < 0) {
        best = 0;
        for (int i = 0; i < static_cast<int>(buffer_.size()); ++i)
          if (buffer_[i].size() < buffer_[best].size()) best = i;
        buffer_[best].resize(room);
      }
      out.starts.push_back(static_cast<int32_t>(out.tokens.size()));
      out.tokens.insert(out.tokens.end(), buffer_[best].begin(), buffer_[best].end());
      buffer_.erase(buffer_.begin() + best);
    }
    return out;
  }

 private:
  std::function<Tokens()> next_;
  size_t capacity_;
  std::vector<Tokens> buffer_;
};

Row next_row(RowPacker& packer) {
  Row row;
  row.tokens.resize(static_cast<size_t>(packer.T() + 1));
  std::vector<float> floor(packer.has_floor() ? row.tokens.size() : 0);
  std::vector<uint8_t> skill(floor.size());
  packer.next({.tokens = row.tokens, .floor = floor, .skill = skill}, row.starts);
  for (size_t i = 0; i < floor.size(); ++i) {
    EXPECT_EQ(floor[i], static_cast<float>(row.tokens[i]) * 0.5f);
    EXPECT_EQ(skill[i], row.tokens[i] % 6);
  }
  return row;
}

DocumentOptions options_for(std::vector<std::string> shards) {
  return {.shards = std::move(shards), .bos = kBos, .vocab_size = 60100, .data_seed = {}};
}

TEST(RowPacker, MatchesThePlainRule) {
  const Folder folder("plain");
  for (const int T : {8, 63, 200}) {
    const std::vector<Tokens> first = make_documents(700, 120, 1);
    const std::vector<Tokens> second = make_documents(900, 150, 2);
    write_shard(folder / "a.bin", joined(first));
    write_shard(folder / "b.bin", joined(second));
    std::vector<Tokens> all = first;
    all.insert(all.end(), second.begin(), second.end());
    size_t at = 0;
    PlainPacker plain([&] { return all[at++ % all.size()]; }, static_cast<size_t>(T + 1));
    RowPacker packer(options_for({folder / "a.bin", folder / "b.bin"}), T, Packing::best_fit);
    int crops = 0;
    for (int r = 0; r < 3000; ++r) {
      const Row row = next_row(packer);
      ASSERT_EQ(row, plain.row()) << "T " << T << ", row " << r;
      ASSERT_EQ(row.starts[0], 0);
      for (const int32_t start : row.starts)
        ASSERT_EQ(row.tokens[static_cast<size_t>(start)], kBos);
      ASSERT_EQ(std::ranges::count(row.tokens, kBos), std::ssize(row.starts));
      crops += row.starts.size() > 1;
    }
    EXPECT_GT(packer.documents().position().epoch, T > 100 ? 2 : 0);
    EXPECT_GT(crops, 0);
    EXPECT_EQ(packer.placed_tokens(), 3000 * (T + 1));
    EXPECT_GT(packer.cropped_tokens(), 0);
  }
}

TEST(RowPacker, InOrderTakesDocumentsAsTheyCome) {
  const Folder folder("in_order");
  const std::vector<Tokens> documents = make_documents(500, 90, 12);
  write_shard(folder / "a.bin", joined(documents));
  write_shard(folder / "b.bin", joined(documents), true);
  RowPacker packer(options_for({folder / "a.bin"}), 50, Packing::in_order);
  size_t at = 0;
  for (int r = 0; r < 600; ++r) {
    Row expected;
    while (expected.tokens.size() < 51) {
      const Tokens& doc = documents[at++ % documents.size()];
      expected.starts.push_back(static_cast<int32_t>(expected.tokens.size()));
      const size_t n = std::min(doc.size(), 51 - expected.tokens.size());
      expected.tokens.insert(expected.tokens.end(), doc.begin(),
                             doc.begin() + static_cast<std::ptrdiff_t>(n));
    }
    ASSERT_EQ(next_row(packer), expected);
  }
  EXPECT_EQ(RowPacker(options_for({folder / "a.bin"}), 50).packing(), Packing::best_fit);
  EXPECT_EQ(RowPacker(options_for({folder / "b.bin"}), 50).packing(), Packing::in_order);
  DataCursor cursor;
  packer.save(cursor);
  EXPECT_TRUE(cursor.buffer.empty());
  EXPECT_THROW(RowPacker(options_for({folder / "a.bin"}), 50).restore(cursor), Error);
  cursor.buffer.push_back({.shard = 0, .length = 1, .begin = 0});
  EXPECT_THROW(packer.restore(cursor), Error);
}

TEST(RowPacker, ContiguousUsesEveryToken) {
  const Folder folder("contiguous");
  const std::vector<Tokens> documents = make_documents(40, 90, 12);
  const Tokens stream = joined(documents);
  write_shard(folder / "a.bin", stream);
  RowPacker packer(options_for({folder / "a.bin"}), 50, Packing::contiguous);
  for (size_t at = 0; at < 3 * stream.size();) {
    const Row row = next_row(packer);
    ASSERT_EQ(row.starts[0], 0);
    for (size_t i = 0; i < row.tokens.size(); ++i, ++at) {
      ASSERT_EQ(row.tokens[i], stream[at % stream.size()]) << "token " << at;
      ASSERT_EQ(i > 0 && row.tokens[i] == kBos,
                i > 0 && std::ranges::count(row.starts, static_cast<int32_t>(i)) == 1);
    }
  }
  EXPECT_EQ(packer.cropped_tokens(), 0);
}

TEST(RowPacker, BooksAreNotCropped) {
  const Folder folder("book");
  write_shard(folder / "book.bin", joined(make_documents(3, 9000, 5)));
  write_shard(folder / "pages.bin", joined(make_documents(400, 60, 6)));
  EXPECT_EQ(RowPacker(options_for({folder / "book.bin"}), 64).packing(), Packing::contiguous);
  EXPECT_EQ(RowPacker(options_for({folder / "pages.bin"}), 64).packing(), Packing::best_fit);
}

TEST(RowPacker, ResumesAtEveryRow) {
  const Folder folder("resume");
  write_shard(folder / "a.bin", joined(make_documents(150, 100, 3)), true);
  write_shard(folder / "b.bin", joined(make_documents(200, 100, 4)), true);
  for (const int arm : {0, 1, 2, 3, 4, 5}) {
    DocumentOptions options = options_for({folder / "a.bin", folder / "b.bin"});
    if (arm % 2 == 1) options.data_seed = 11;
    const Packing packing = std::array{Packing::best_fit, Packing::in_order,
                                       Packing::contiguous}[static_cast<size_t>(arm / 2)];
    RowPacker packer(options, 64, packing);
    std::vector<Row> rows;
    std::vector<DataCursor> cursors;
    for (int r = 0; r < 400; ++r) {
      packer.save(cursors.emplace_back());
      rows.push_back(next_row(packer));
    }
    EXPECT_GT(packer.documents().position().epoch, 0);
    RowPacker other(options, 64, packing);
    for (size_t r = 0; r < rows.size(); ++r) {
      // Through the text form, as a checkpoint does.
      other.restore(data_cursor_from_json(nlohmann::json::parse(to_json(cursors[r]).dump())));
      DataCursor again;
      other.save(again);
      ASSERT_EQ(again, cursors[r]);
      for (size_t k = r; k < std::min(rows.size(), r + 3); ++k) ASSERT_EQ(next_row(other), rows[k]);
    }
    RowPacker fresh(options, 64, packing);
    fresh.restore(cursors[200]);
    for (size_t r = 200; r < rows.size(); ++r) ASSERT_EQ(next_row(fresh), rows[r]);
    fresh.restart();
    for (size_t r = 0; r < 50; ++r) ASSERT_EQ(next_row(fresh), rows[r]);
  }
}

TEST(RowPacker, RefusesForeignCursors) {
  const Folder folder("foreign");
  write_shard(folder / "a.bin", joined(make_documents(300, 100, 3)));
  write_shard(folder / "b.bin", joined(make_documents(301, 100, 3)));
  RowPacker packer(options_for({folder / "a.bin"}), 32);
  next_row(packer);
  DataCursor cursor;
  packer.save(cursor);
  EXPECT_THROW(RowPacker(options_for({folder / "b.bin"}), 32).restore(cursor), Error);
  EXPECT_THROW(RowPacker(options_for({folder / "a.bin"}), 33).restore(cursor), Error);
  fs::create_directories(folder.path / "other");
  Tokens changed = joined(make_documents(300, 100, 3));
  changed[5] += changed[5] == kBos ? 0 : 1;
  changed[6] += changed[6] == kBos ? 0 : 1;
  write_shard(folder / "other/a.bin", changed);
  EXPECT_THROW(RowPacker(options_for({folder / "other/a.bin"}), 32).restore(cursor), Error);
  DocumentOptions seeded = options_for({folder / "a.bin"});
  seeded.data_seed = 1;
  EXPECT_THROW(RowPacker(seeded, 32).restore(cursor), Error);

  const auto broken = [&](auto&& change) {
    nlohmann::json json = to_json(cursor);
    change(json);
    packer.restore(data_cursor_from_json(json));
  };
  EXPECT_NO_THROW(broken([](auto&) {}));
  EXPECT_THROW(broken([](auto& j) { j.erase("rows"); }), Error);
  EXPECT_THROW(broken([](auto& j) { j["epoch"] = -1; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["epoch"] = "one"; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["turn"] = 1; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["document"] = 100000; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"] = 3; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0] = {1, 2}; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0][0] = 5; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0][0] = 1LL << 40; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0][1] = 1LL << 60; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0][1] = 1; }), Error);
  EXPECT_THROW(broken([](auto& j) { j["buffer"][0][2] = -4; }), Error);
}

TEST(DocumentStream, LeavesOutTokensBeforeTheFirstBos) {
  const Folder folder("lead");
  write_shard(folder / "a.bin", {5, 6, 7, kBos, 8, kBos, 9, 10});
  write_shard(folder / "b.bin", {11, 12});
  write_shard(folder / "c.bin", {13, kBos});
  DocumentStream stream(options_for({folder / "a.bin", folder / "b.bin", folder / "c.bin"}));
  for (int epoch = 0; epoch < 3; ++epoch) {
    EXPECT_EQ(stream.next(), (DocumentRef{.shard = 0, .length = 2, .begin = 3}));
    EXPECT_EQ(stream.next(), (DocumentRef{.shard = 0, .length = 3, .begin = 5}));
    EXPECT_EQ(stream.next(), (DocumentRef{.shard = 2, .length = 1, .begin = 1}));
    EXPECT_EQ(stream.position().epoch, epoch);
  }
}

TEST(DocumentStream, DataSeedPermutesEveryEpoch) {
  const Folder folder("seed");
  write_shard(folder / "a.bin", joined(make_documents(50, 10, 5)));
  write_shard(folder / "b.bin", joined(make_documents(70, 10, 6)));
  write_shard(folder / "c.bin", joined(make_documents(60, 10, 7)));
  DocumentOptions options = options_for({folder / "a.bin", folder / "b.bin", folder / "c.bin"});
  using Key = std::pair<int32_t, int64_t>;
  const auto epochs = [&](std::optional<uint64_t> seed) {
    options.data_seed = seed;
    DocumentStream stream(options);
    std::vector<std::vector<Key>> out(3);
    for (std::vector<Key>& epoch : out)
      for (int i = 0; i < 180; ++i) {
        const DocumentRef ref = stream.next();
        epoch.emplace_back(ref.shard, ref.begin);
      }
    return out;
  };
  const auto plain = epochs({}), one = epochs(1), again = epochs(1), two = epochs(2);
  EXPECT_EQ(plain[0], plain[1]);
  EXPECT_EQ(one, again);
  EXPECT_NE(one[0], plain[0]);
  EXPECT_NE(one[0], one[1]);
  EXPECT_NE(one[0], two[0]);
  const std::set<Key> all(plain[0].begin(), plain[0].end());
  EXPECT_EQ(all.size(), 180u);
  for (const auto& epoch : one) EXPECT_EQ(std::set<Key>(epoch.begin(), epoch.end()), all);
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(DocumentStream, Errors) {
  const Folder folder("errors");
  write_shard(folder / "big.bin", {kBos, 1, 2, 70000, 4});
  std::string text = message_of([&] { DocumentStream(options_for({folder / "big.bin"})).next(); });
  EXPECT_NE(text.find("big.bin: token 3 (byte 1036) is 70000"), std::string::npos) << text;
  write_shard(folder / "none.bin", {1, 2, 3});
  text = message_of([&] { DocumentStream(options_for({folder / "none.bin"})).next(); });
  EXPECT_NE(text.find("BOS token 99"), std::string::npos) << text;
  text = message_of([&] { RowPacker(options_for({folder / "none.bin"}), 8); });
  EXPECT_NE(text.find("has 3 tokens"), std::string::npos) << text;
  write_shard(folder / "empty.bin", {});
  EXPECT_NE(
      message_of([&] { RowPacker(options_for({folder / "empty.bin"}), 8); }).find("has 0 tokens"),
      std::string::npos);
  EXPECT_THROW(RowPacker(options_for({}), 8), Error);
  EXPECT_THROW(RowPacker(options_for({folder / "missing.bin"}), 8), Error);
  write_shard(folder / "with.bin", {kBos, 1}, true);
  text = message_of([&] {
    DocumentStream(options_for({folder / "with.bin", folder / "none.bin"}));
  });
  EXPECT_NE(text.find("none.bin.floor"), std::string::npos) << text;
  DocumentOptions options = options_for({folder / "none.bin"});
  options.bos = 70000;
  EXPECT_THROW(DocumentStream{options}, Error);
}

TEST(BatchLoader, GivesTheRowsOfThePacker) {
  const Folder folder("loader");
  write_shard(folder / "a.bin", joined(make_documents(400, 60, 8)), true);
  const DocumentOptions options = options_for({folder / "a.bin"});
  constexpr int64_t T = 32;
  for (const int64_t B : {1, 3}) {
    RowPacker packer(options, T);
    BatchLoader loader(options, B, T);
    std::optional<DataCursor> middle;
    std::vector<Tokens> later;
    std::vector<uint64_t> hashes;
    for (int step = 0; step < 60; ++step) {
      const Batch& batch = loader.next();
      ASSERT_EQ(batch.B, B);
      std::vector<int32_t> starts;
      for (int64_t b = 0; b < B; ++b) {
        const Row row = next_row(packer);
        for (int64_t t = 0; t < T; ++t) {
          const auto i = static_cast<size_t>(b * T + t);
          ASSERT_EQ(batch.tokens[i], row.tokens[static_cast<size_t>(t)]);
          ASSERT_EQ(batch.targets[i], row.tokens[static_cast<size_t>(t + 1)]);
          ASSERT_EQ(batch.floor[i], static_cast<float>(batch.targets[i]) * 0.5f);
          ASSERT_EQ(batch.skill[i], batch.targets[i] % 6);
          if (batch.tokens[i] == kBos) starts.push_back(static_cast<int32_t>(i));
        }
      }
      ASSERT_EQ(batch.document_starts, starts);
      DataCursor cursor;
      packer.save(cursor);
      ASSERT_EQ(batch.cursor, cursor);
      if (step == 20) middle = batch.cursor;
      if (step <= 20) continue;
      later.push_back(batch.tokens);
      hashes.push_back(batch.hash);
    }
    BatchLoader resumed(options, B, T, middle);
    for (size_t i = 0; i < later.size(); ++i) {
      const Batch& batch = resumed.next();
      ASSERT_EQ(batch.tokens, later[i]);
      ASSERT_EQ(batch.hash, hashes[i]);
    }
    std::sort(hashes.begin(), hashes.end());
    EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
  }
}

TEST(BatchLoader, ThrowsTheErrorsOfTheData) {
  const Folder folder("loader_errors");
  Tokens tokens = joined(make_documents(2000, 20, 9));
  write_shard(folder / "a.bin", tokens);
  tokens[tokens.size() / 2] = 65000;
  write_shard(folder / "b.bin", tokens);
  BatchLoader loader(options_for({folder / "a.bin", folder / "b.bin"}), 2, 32);
  int good = 0;
  const std::string text = message_of([&] {
    for (int i = 0; i < 1000; ++i) {
      loader.next();
      ++good;
    }
  });
  EXPECT_NE(text.find("b.bin: token"), std::string::npos) << text;
  EXPECT_GT(good, 50);
  EXPECT_THROW(loader.next(), Error);  // again, rather than waiting for ever
  EXPECT_THROW(BatchLoader(options_for({folder / "a.bin"}), 0, 32), Error);
  { const BatchLoader unused(options_for({folder / "a.bin"}), 2, 32); }  // stops without next()
}

}  // namespace
}  // namespace tightloop
