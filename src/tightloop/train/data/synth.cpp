#include "tightloop/train/data/synth.h"

#include <filesystem>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/text/story_corpus.h"
#include "tightloop/text/story_encoder.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "tightloop-corpus-1";

std::string join(const std::string& folder, const std::string& file) {
  return (fs::path(folder) / file).string();
}

std::string sha256_of_file(const std::string& path) {
  const MappedFile file(path);
  return sha256_hex(file.text());
}

struct SplitPlan {
  std::string folder;
  const char* name;
  uint64_t first_stream;
  int64_t tokens;
  int64_t shard_tokens;
  int64_t vocab_size;
};

/// Writes whole stories until the split has its tokens.
CorpusInfo::Split write_split(const SplitPlan& plan, const StoryEncoder& encoder) {
  CorpusInfo::Split out;
  constexpr int64_t kBlock{4096};  // stories made in parallel before they are written in order
  std::vector<SyntheticDocument> block(kBlock);
  int64_t used = kBlock;
  double nats_sum = 0;
  while (out.tokens < plan.tokens) {
    CorpusInfo::Shard shard;
    shard.file = fmt::format("{}_{:06}.bin", plan.name, out.shards.size());
    TokenShardWriter writer(join(plan.folder, shard.file), plan.vocab_size);
    std::vector<float> nats;
    std::vector<uint8_t> skills;
    while (out.tokens + shard.tokens < plan.tokens && shard.tokens < plan.shard_tokens) {
      if (used == kBlock) {
        const uint64_t base = plan.first_stream + static_cast<uint64_t>(out.documents);
        parallel_for(kBlock, 64, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            block[static_cast<size_t>(i)] = encoder.story(base + static_cast<uint64_t>(i));
        });
        used = 0;
      }
      const SyntheticDocument& story = block[static_cast<size_t>(used++)];
      writer.append(story.tokens);
      nats.insert(nats.end(), story.nll.begin(), story.nll.end());
      skills.insert(skills.end(), story.skill.begin(), story.skill.end());
      for (const float n : story.nll) nats_sum += n;
      shard.tokens += std::ssize(story.tokens);
      ++out.documents;
    }
    writer.finish();
    const std::string path = join(plan.folder, shard.file);
    write_floor_file(floor_path(path), nats, skills);
    shard.sha256 = sha256_of_file(path);
    shard.floor_sha256 = sha256_of_file(floor_path(path));
    out.tokens += shard.tokens;
    out.shards.push_back(std::move(shard));
  }
  out.floor = nats_sum / static_cast<double>(out.tokens);
  return out;
}

OrderedJson json_of(const CorpusInfo::Split& split) {
  OrderedJson shards = OrderedJson::array();
  for (const CorpusInfo::Shard& shard : split.shards)
    shards.push_back({{"file", shard.file},
                      {"tokens", shard.tokens},
                      {"sha256", shard.sha256},
                      {"floor_sha256", shard.floor_sha256}});
  return {{"tokens", split.tokens},
          {"documents", split.documents},
          {"floor", split.floor},
          {"shards", std::move(shards)}};
}

CorpusInfo::Split split_of(const Json& json, const std::string& where) {
  CorpusInfo::Split out;
  out.tokens = get_int(json, "tokens", where);
  out.documents = get_int(json, "documents", where);
  out.floor = get_double(json, "floor", where);
  for (const Json& entry : get_array(json, "shards", where)) {
    CorpusInfo::Shard& shard = out.shards.emplace_back();
    shard.file = get_string(entry, "file", where + ".shards");
    shard.tokens = get_int(entry, "tokens", where + ".shards");
    shard.sha256 = get_string(entry, "sha256", where + ".shards");
    shard.floor_sha256 = get_string(entry, "floor_sha256", where + ".shards");
  }
  return out;
}

}  // namespace

std::optional<CorpusInfo> read_corpus_info(const std::string& folder) {
  const std::string path = join(folder, "corpus.json");
  if (!fs::exists(path)) return std::nullopt;
  return parse_corpus_info(read_file(path, int64_t{1} << 26), path);
}

CorpusInfo parse_corpus_info(std::string_view text, const std::string& path) {
  const Json json = parse_json(text, path);
  const std::string format = get_string(json, "format", path);
  if (format != kFormat)
    fail(ErrorKind::data, "{}: format is \"{}\", expected \"{}\"", path, format, kFormat);
  CorpusInfo info;
  info.corpus = get_string(json, "corpus", path);
  info.seed = static_cast<uint64_t>(get_int(json, "seed", path));
  info.asked_train_tokens = get_int(json, "asked_train_tokens", path);
  info.asked_val_tokens = get_int(json, "asked_val_tokens", path);
  info.shard_tokens = get_int(json, "shard_tokens", path);
  info.tokenizer_hash = get_string(json, "tokenizer_hash", path);
  info.vocab_size = get_int(json, "vocab_size", path);
  info.nats_per_story = get_double(json, "nats_per_story", path);
  info.rate = get_double(json, "rate", path);
  info.train = split_of(get_object(json, "train", path), path + ": train");
  info.val = split_of(get_object(json, "val", path), path + ": val");
  return info;
}

CorpusInfo make_corpus(const SynthOptions& options) {
  TL_CHECK(options.shard_tokens >= 1);
  if (options.train_tokens < 1 || options.val_tokens < 1)
    fail(ErrorKind::usage,
         "data synth: {} training and {} validation tokens: expected at least 1 of each",
         options.train_tokens, options.val_tokens);
  if (options.seed >> 63 != 0)
    fail(ErrorKind::usage, "data synth: the seed is {}, expected at most {}", options.seed,
         ~uint64_t{0} >> 1);
  const StoryCorpus corpus(StorySettings::named(options.corpus), options.seed);
  const Tokenizer tokenizer = options.tokenizer ? *options.tokenizer : corpus.tokenizer();
  const StoryEntropy entropy = corpus.entropy();

  CorpusInfo info;
  info.corpus = options.corpus;
  info.seed = options.seed;
  info.asked_train_tokens = options.train_tokens;
  info.asked_val_tokens = options.val_tokens;
  info.shard_tokens = options.shard_tokens;
  info.tokenizer_hash = tokenizer.content_hash();
  info.vocab_size = tokenizer.vocab_size();
  info.nats_per_story = entropy.nats_per_story;
  info.rate = options.tokenizer ? 0 : entropy.rate();

  if (std::optional<CorpusInfo> old = read_corpus_info(options.folder)) {
    const auto key = [](const CorpusInfo& i) {
      return std::tuple(i.corpus, i.seed, i.asked_train_tokens, i.asked_val_tokens, i.shard_tokens,
                        i.tokenizer_hash);
    };
    if (key(*old) != key(info))
      throw Error(
          ErrorKind::usage,
          fmt::format("{} already holds another corpus: \"{}\", seed {}, {} training tokens",
                      options.folder, old->corpus, old->seed, old->train.tokens))
          .with_hint("choose another folder, or remove this one");
    if (is_complete_directory(options.folder)) {
      old->reused = true;
      return *std::move(old);
    }
  } else if (fs::exists(options.folder) &&
             (!fs::is_directory(options.folder) || !fs::is_empty(options.folder))) {
    throw Error(
        ErrorKind::usage,
        fmt::format("{} is there and holds something else than a built-in corpus", options.folder))
        .with_hint("choose another folder, or remove this one");
  }

  PendingDirectory pending(options.folder);
  const StoryEncoder encoder(corpus, tokenizer);
  info.train = write_split(
      {pending.path(), "train", 0, options.train_tokens, options.shard_tokens, info.vocab_size},
      encoder);
  info.val = write_split({pending.path(), "val", StoryCorpus::kValidationStream, options.val_tokens,
                          options.shard_tokens, info.vocab_size},
                         encoder);
  write_file_atomically(join(pending.path(), "tokenizer.json"), tokenizer.to_json());
  const OrderedJson json{{"format", kFormat},
                         {"corpus", info.corpus},
                         {"seed", info.seed},
                         {"asked_train_tokens", info.asked_train_tokens},
                         {"asked_val_tokens", info.asked_val_tokens},
                         {"shard_tokens", info.shard_tokens},
                         {"tokenizer_hash", info.tokenizer_hash},
                         {"vocab_size", info.vocab_size},
                         {"nats_per_story", info.nats_per_story},
                         {"rate", info.rate},
                         {"train", json_of(info.train)},
                         {"val", json_of(info.val)}};
  write_file_atomically(join(pending.path(), "corpus.json"), json.dump(2) + "\n");
  pending.publish();
  return info;
}

}  // namespace tightloop
