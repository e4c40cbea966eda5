#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/io/fetch.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/train/data/inspect.h"
#include "tightloop/train/data/pack.h"
#include "tightloop/train/data/synth.h"
#include "tightloop/train/data/tokenize.h"

namespace tightloop::cli {
namespace {

struct SynthFlags {
  SynthOptions options;
  std::string tokenizer;
  bool json = false;
};

OrderedJson split_json(const CorpusInfo::Split& split) {
  return {{"tokens", split.tokens}, {"documents", split.documents}, {"floor", split.floor}};
}

int run_synth(SynthFlags& flags) {
  if (!flags.tokenizer.empty()) flags.options.tokenizer = Tokenizer::load(flags.tokenizer);
  const CorpusInfo info = make_corpus(flags.options);
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["folder"] = flags.options.folder;
    json["corpus"] = info.corpus;
    json["vocab_size"] = info.vocab_size;
    json["rate"] = info.rate;
    json["train"] = split_json(info.train);
    json["val"] = split_json(info.val);
    json["reused"] = info.reused;
    out(json.dump() + "\n");
    return kDone;
  }
  out(fmt::format("{} corpus in {}{}\n", info.corpus, flags.options.folder,
                  info.reused ? " (was there already)" : ""));
  out(fmt::format("vocabulary {}; train {} tokens in {} stories; validation {} tokens in {}\n",
                  info.vocab_size, info.train.tokens, info.train.documents, info.val.tokens,
                  info.val.documents));
  out(
      fmt::format("loss floor: train {:.4f}, validation {:.4f} nats a token (expected over all "
                  "stories: {:.4f})\n",
                  info.train.floor, info.val.floor, info.rate));
  talk(fmt::format("\nnext: `tightloop train --preset quick --data {}`\n", flags.options.folder));
  return kDone;
}

struct TokenizeFlags {
  TokenizeOptions options;
  std::string tokenizer;
  bool json = false;
};

/// Shells pass "\n" as two characters.
std::string unescape(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() && (text[i + 1] == 'n' || text[i + 1] == 't')) {
      result += text[++i] == 'n' ? '\n' : '\t';
    } else {
      result += text[i];
    }
  }
  return result;
}

int run_tokenize(TokenizeFlags& flags) {
  flags.options.separator = unescape(flags.options.separator);
  const TokenizeResult r = tokenize_text(Tokenizer::load(flags.tokenizer), flags.options);
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["folder"] = flags.options.folder;
    json["files"] = r.files;
    for (const auto& [name, split] : {std::pair{"train", &r.train}, {"val", &r.val}})
      json[name] = {{"tokens", split->tokens},
                    {"documents", split->documents},
                    {"bytes", split->bytes},
                    {"longest", split->longest},
                    {"shards", split->shards}};
    out(json.dump() + "\n");
    return kDone;
  }
  for (const auto& [name, split] : {std::pair{"train", &r.train}, {"val  ", &r.val}})
    out(fmt::format("{}  {} tokens, {} documents, {} of text, {:.2f} bytes a token\n", name,
                    split->tokens, split->documents, human_bytes(static_cast<double>(split->bytes)),
                    split->tokens > 0
                        ? static_cast<double>(split->bytes) / static_cast<double>(split->tokens)
                        : 0.0));
  if (r.val.documents == 0)
    talk(
        "\nThere is no validation text: `tightloop train` needs some, from --val FILE or a share "
        "with --val-fraction.\n");
  else
    talk(fmt::format("\nnext: `tightloop train --data {} --depth 4`\n", flags.options.folder));
  return kDone;
}

/// The tokenizer of the shards `paths` that `spec` names, unless another one is given, and its BOS.
std::pair<Tokenizer, int32_t> tokenizer_of(const std::string& spec,
                                           const std::vector<std::string>& paths,
                                           const std::string& given) {
  std::string beside = spec;
  if (!std::filesystem::is_directory(beside))
    beside = std::filesystem::absolute(paths[0]).parent_path().string();
  for (const std::string& path : paths) TokenShard{path};  // refused before a tokenizer is missed
  try {
    Tokenizer tokenizer = Tokenizer::load(given.empty() ? beside : given);
    const std::optional<int32_t> bos = tokenizer.bos_id();
    if (!bos) fail(ErrorKind::data, "the tokenizer has neither <|bos|> nor <|endoftext|>");
    return {std::move(tokenizer), *bos};
  } catch (Error& e) {
    throw e.with_context("cannot tell where documents begin without the tokenizer")
        .with_hint("say where it is with --tokenizer FILE");
  }
}

struct InspectFlags {
  std::string path;
  std::string tokenizer;
  int documents = 3;
  bool json = false;
};

int run_inspect(const InspectFlags& flags) {
  if (flags.documents < 0)
    fail(ErrorKind::usage, "--documents: {} cannot be shown, expected 0 or more", flags.documents);
  DatasetShards shards = find_shards(flags.path);
  std::vector<std::string> paths = shards.train;
  paths.insert(paths.end(), shards.val.begin(), shards.val.end());
  const auto [tokenizer, bos] = tokenizer_of(flags.path, paths, flags.tokenizer);
  const ShardSummary s = inspect_shards(paths, {.bos = bos, .documents = flags.documents});
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    OrderedJson list = OrderedJson::array();
    for (const ShardSummary::Shard& shard : s.shards)
      list.push_back({{"path", shard.path},
                      {"tokens", shard.tokens},
                      {"token_bytes", shard.token_bytes},
                      {"max_token", shard.max_token},
                      {"documents", shard.documents},
                      {"floor", shard.has_floor}});
    json["shards"] = list;
    json["tokens"] = s.tokens;
    json["documents"] = s.documents;
    json["max_token"] = s.max_token;
    json["vocab_size"] = tokenizer.vocab_size();
    json["document_tokens"] = {
        {"shortest", s.shortest}, {"median", s.median}, {"longest", s.longest}, {"mean", s.mean}};
    if (s.floor) json["floor"] = *s.floor;
    out(json.dump() + "\n");
    return kDone;
  }
  for (const ShardSummary::Shard& shard : s.shards)
    out(fmt::format("{}  {} tokens of {} bytes, {} documents{}\n", shard.path, shard.tokens,
                    shard.token_bytes, shard.documents, shard.has_floor ? ", floor known" : ""));
  out(fmt::format("\n{} tokens, largest id {} of a vocabulary of {}\n", s.tokens, s.max_token,
                  tokenizer.vocab_size()));
  out(fmt::format("{} documents of {} to {} tokens, median {}, mean {:.1f}\n", s.documents,
                  s.shortest, s.longest, s.median, s.mean));
  int64_t most = 1;
  for (int64_t n : s.lengths) most = std::max(most, n);
  for (size_t i = 0; i < s.lengths.size(); ++i) {
    if (s.lengths[i] > 0)
      out(fmt::format("  {:>7}-{:<7} {:>9}  {}\n", int64_t{1} << i, (int64_t{2} << i) - 1,
                      s.lengths[i],
                      std::string(static_cast<size_t>(1 + 40 * (s.lengths[i] - 1) / most), '#')));
  }
  if (s.floor) {
    out(fmt::format("\nloss floor {:.4f} nats a token; by skill:\n", *s.floor));
    for (int i = 0; i < kSkillCount; ++i) {
      const auto k = static_cast<size_t>(i);
      if (s.skill_tokens[k] > 0)
        out(fmt::format(
            "  {:<7} {:5.1f}% of tokens, {:.4f} nats\n", kSkillNames[k],
            100.0 * static_cast<double>(s.skill_tokens[k]) / static_cast<double>(s.tokens),
            s.skill_floor[k]));
    }
  }
  for (const std::vector<int32_t>& document : s.first)
    out(fmt::format("\n---\n{}\n", tokenizer.decode(document)));
  return kDone;
}

struct RowsFlags {
  std::string path;
  std::string output;
  std::string tokenizer;
  int64_t rows = 0;
  int64_t max_seq_len = 2048;
  std::optional<int64_t> data_seed;
  bool json = false;
};

int run_rows(const RowsFlags& flags) {
  if (flags.output.empty())
    throw Error(ErrorKind::usage, "--output is required: the file to write")
        .with_hint(fmt::format("`tightloop data rows {} -o rows.bin`", flags.path));
  if (flags.rows < 1)
    fail(ErrorKind::usage, "--rows: {} cannot be written, expected 1 or more", flags.rows);
  if (flags.data_seed && *flags.data_seed < 0)
    fail(ErrorKind::usage, "--data-seed is {}, expected 0 or more", *flags.data_seed);
  const std::vector<std::string> shards = find_shards(flags.path).train;
  if (shards.empty()) fail(ErrorKind::data, "'{}' has no training shard", flags.path);
  const auto [tokenizer, bos] = tokenizer_of(flags.path, shards, flags.tokenizer);
  const int64_t vocab = tokenizer.vocab_size();
  for (const std::string& path : shards) TokenShard(path).check_vocab(vocab);
  DocumentOptions documents{.shards = shards, .bos = bos, .vocab_size = vocab};
  if (flags.data_seed) documents.data_seed = static_cast<uint64_t>(*flags.data_seed);
  RowPacker packer(std::move(documents), flags.max_seq_len);
  TokenShardWriter writer(flags.output, vocab);
  std::vector<int32_t> tokens(static_cast<size_t>(flags.max_seq_len + 1)), starts;
  std::vector<float> floor(packer.has_floor() ? tokens.size() : 0);
  std::vector<uint8_t> skill(floor.size());
  for (int64_t i = 0; i < flags.rows; ++i) {
    starts.clear();
    packer.next({.tokens = tokens, .floor = floor, .skill = skill}, starts);
    writer.append(tokens);
  }
  writer.finish();
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["file"] = flags.output;
    json["rows"] = flags.rows;
    json["row_tokens"] = flags.max_seq_len + 1;
    json["vocab_size"] = vocab;
    json["packing"] = name_of(packer.packing());
    out(json.dump() + "\n");
  } else {
    out(fmt::format("{} rows of {} tokens in {} ({} packing, vocabulary {})\n", flags.rows,
                    flags.max_seq_len + 1, flags.output, name_of(packer.packing()), vocab));
  }
  return kDone;
}

struct FetchFlags {
  std::string what;
  std::string folder;
  int shards = 1;
  bool json = false;
};

int run_fetch(const FetchFlags& flags) {
  if (flags.what != "fineweb10b" && !std::filesystem::is_regular_file(flags.what))
    throw Error(
        ErrorKind::usage,
        fmt::format("nothing known as '{}', and no such file{}: expected fineweb10b, or a "
                    "file of lines URL [bytes] [sha256] [name]",
                    flags.what, std::filesystem::is_directory(flags.what) ? ", but a folder" : ""))
        .with_hint("`tightloop data fetch fineweb10b -o fineweb10b --shards 1`");
  if (flags.folder.empty())
    throw Error(ErrorKind::usage, "--output is required: the folder to download to")
        .with_hint(fmt::format("`tightloop data fetch {} -o {}`", flags.what,
                               flags.what == "fineweb10b" ? "fineweb10b" : "data"));
  std::vector<FetchItem> items;
  if (flags.what == "fineweb10b") {
    items = fineweb10b_list(flags.shards);
  } else {
    const MappedFile list(flags.what);
    items = parse_fetch_list(
        {reinterpret_cast<const char*>(list.data()), static_cast<size_t>(list.size())}, flags.what);
    if (items.empty())
      throw Error(ErrorKind::data, fmt::format("{}: no URL in this file", flags.what))
          .with_hint("one a line: URL [bytes] [sha256] [name]");
  }
  const bool terminal = stderr_is_terminal();
  int64_t shown = -1;
  FetchOptions options;
  options.progress = [&](const FetchProgress& p) {
    if (terminal || p.item != shown)
      talk(fmt::format(
          "{}[{}/{}] {}  {}{}{}", terminal ? "\r\033[K" : "", p.item + 1, p.items, p.name,
          human_bytes(static_cast<double>(p.bytes_done)),
          p.bytes_total ? " of " + human_bytes(static_cast<double>(*p.bytes_total)) : "",
          terminal ? "" : "\n"));
    shown = p.item;
    return !g_stop.load();
  };
  const std::vector<FetchOutcome> outcomes = fetch_files(items, flags.folder, options);
  if (terminal) talk("\n");
  int64_t there = 0;
  for (FetchOutcome outcome : outcomes) there += outcome == FetchOutcome::already_there ? 1 : 0;
  if (flags.json)
    out(OrderedJson{{"v", 1},
                    {"folder", flags.folder},
                    {"files", outcomes.size()},
                    {"already_there", there}}
            .dump() +
        "\n");
  else
    out(fmt::format("{} files in {} ({} were there already)\n", outcomes.size(), flags.folder,
                    there));
  return kDone;
}

}  // namespace

void add_data(CLI::App& app, Runner& runner) {
  auto* data = app.add_subcommand("data", "make, fetch and look at training data");
  data->require_subcommand(0, 1);

  auto* synth = data->add_subcommand("synth", "the built-in story corpus, whose entropy is known");
  auto synth_flags = std::make_shared<SynthFlags>();
  synth->add_option("folder", synth_flags->options.folder, "folder to make")->required();
  synth->add_option("--corpus", synth_flags->options.corpus, "small or large [small]");
  synth->add_option("--seed", synth_flags->options.seed, "of the stories [0]");
  synth->add_option("--train-tokens", synth_flags->options.train_tokens, "at least [8000000]");
  synth->add_option("--val-tokens", synth_flags->options.val_tokens, "at least [262144]");
  synth->add_option("--tokenizer", synth_flags->tokenizer,
                    "another tokenizer.json (BPE); the floor stays exact");
  synth->add_flag("--json", synth_flags->json, "one JSON object on stdout");
  synth->footer("Example: tightloop data synth stories --corpus large --train-tokens 20000000");
  synth->allow_extras();
  synth->callback(
      [synth_flags, &runner] { runner = [synth_flags] { return run_synth(*synth_flags); }; });

  auto* tokenize = data->add_subcommand("tokenize", "text files or folders to token shards");
  auto tokenize_flags = std::make_shared<TokenizeFlags>();
  tokenize->add_option("input", tokenize_flags->options.inputs, "text files or folders")
      ->required();
  tokenize->add_option("-o,--output", tokenize_flags->options.folder, "folder to make")->required();
  tokenize->add_option("--tokenizer", tokenize_flags->tokenizer, "tokenizer.json or its folder")
      ->required();
  tokenize
      ->add_option("--val", tokenize_flags->options.val_inputs, "validation text files or folders")
      ->allow_extra_args(false);
  tokenize->add_option("--val-fraction", tokenize_flags->options.val_fraction,
                       "share of documents for validation when there is no --val [0.01]");
  tokenize->add_option("--separator", tokenize_flags->options.separator,
                       "between documents of a file, such as '\\n\\n' (none: a file is one)");
  tokenize->add_option("--max-document-tokens", tokenize_flags->options.max_document_tokens,
                       "cut longer documents; 0: never [0]");
  tokenize->add_flag("--json", tokenize_flags->json, "one JSON object on stdout");
  tokenize->footer(
      "Example: tightloop data tokenize books/ -o books.tok --tokenizer tok.json --separator "
      "'\\n\\n'");
  tokenize->allow_extras();
  tokenize->callback([tokenize_flags, &runner] {
    runner = [tokenize_flags] { return run_tokenize(*tokenize_flags); };
  });

  auto* inspect = data->add_subcommand("inspect", "what is in token shards");
  auto inspect_flags = std::make_shared<InspectFlags>();
  inspect->add_option("path", inspect_flags->path, "folder or shard")->required();
  inspect->add_option("--tokenizer", inspect_flags->tokenizer, "when it is not beside the shards");
  inspect->add_option("--documents", inspect_flags->documents, "how many to show [3]");
  inspect->add_flag("--json", inspect_flags->json, "one JSON object on stdout");
  inspect->footer("Example: tightloop data inspect stories");
  inspect->allow_extras();
  inspect->callback([inspect_flags, &runner] {
    runner = [inspect_flags] { return run_inspect(*inspect_flags); };
  });

  auto* rows = data->add_subcommand("rows", "the rows that train reads, for another trainer");
  auto rows_flags = std::make_shared<RowsFlags>();
  rows->add_option("path", rows_flags->path, "the --data of train")->required();
  rows->add_option("-o,--output", rows_flags->output, "token shard to write")
      ->type_name("FILE REQUIRED");
  rows->add_option("--rows", rows_flags->rows,
                   "how many; a step of train reads total-batch-size / max-seq-len")
      ->type_name("INT REQUIRED");
  rows->add_option("--max-seq-len", rows_flags->max_seq_len,
                   "T: a row is T + 1 tokens, T inputs and the target after each [2048]");
  rows->add_option("--data-seed", rows_flags->data_seed, "that of train");
  rows->add_option("--tokenizer", rows_flags->tokenizer, "when it is not beside the shards");
  rows->add_flag("--json", rows_flags->json, "one JSON object on stdout");
  rows->footer("Example: tightloop data rows books.tok -o rows.bin --rows 9600");
  rows->allow_extras();
  rows->callback(
      [rows_flags, &runner] { runner = [rows_flags] { return run_rows(*rows_flags); }; });

  auto* fetch = data->add_subcommand("fetch", "download public shards, with resume and checks");
  auto fetch_flags = std::make_shared<FetchFlags>();
  fetch
      ->add_option("what", fetch_flags->what,
                   "fineweb10b, or a file of lines: URL [bytes] [sha256] [name]")
      ->required();
  fetch->add_option("-o,--output", fetch_flags->folder, "folder to download to")
      ->type_name("DIR REQUIRED");
  fetch->add_option("--shards", fetch_flags->shards, "training shards of fineweb10b, 1 to 103 [1]");
  fetch->add_flag("--json", fetch_flags->json, "one JSON object on stdout");
  fetch->footer("Example: tightloop data fetch fineweb10b -o fineweb10b --shards 8");
  fetch->allow_extras();
  fetch->callback(
      [fetch_flags, &runner] { runner = [fetch_flags] { return run_fetch(*fetch_flags); }; });
}

}  // namespace tightloop::cli
