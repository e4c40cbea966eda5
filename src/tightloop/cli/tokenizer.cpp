#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/text/bpe_train.h"
#include "tightloop/train/data/tokenize.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;

std::string read_all(const std::string& path) {
  if (path.empty() || path == "-")
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size())};
}

struct TrainTokenizerFlags {
  std::vector<std::string> inputs;
  std::string output;
  std::string split = "nanochat";
  BpeTrainOptions options;
  bool json = false;
};

/// Pieces of at most max_document_chars, so that one large file counts whole.
std::vector<std::string_view> pieces_of(std::string_view text, int64_t most) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    size_t end = std::min(text.size(), static_cast<size_t>(most));
    if (end < text.size()) {
      const size_t line = text.rfind('\n', end);
      if (line != std::string_view::npos && line > 0) end = line;
    }
    pieces.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return pieces;
}

int run_train_tokenizer(TrainTokenizerFlags& flags) {
  if (flags.split == "gpt2") {
    flags.options.split = kGpt2Split;
    flags.options.specials = {"<|endoftext|>"};
  } else if (flags.split != "nanochat") {
    fail(ErrorKind::usage, "--split '{}' must be nanochat or gpt2", flags.split);
  }
  BpeTrainer trainer(flags.options);
  const std::vector<std::string> files = text_files(flags.inputs);
  for (const std::string& file : files) {
    const std::string text = read_all(file);
    if (!trainer.add(pieces_of(text, flags.options.max_document_chars))) break;
  }
  if (trainer.chars() == 0)
    fail(ErrorKind::data, "{}: no text to train on in {} file{}", files[0], files.size(),
         files.size() == 1 ? "" : "s");
  const bool terminal = stderr_is_terminal();
  const Tokenizer tokenizer = trainer.train([&](int64_t done, int64_t wanted) {
    if (terminal) talk(fmt::format("\r\033[Kmerge {}/{}", done, wanted));
  });
  if (terminal) talk("\n");
  write_file_atomically(flags.output, tokenizer.to_json());
  if (flags.json)
    out(OrderedJson{{"v", 1},
                    {"file", flags.output},
                    {"vocab_size", tokenizer.vocab_size()},
                    {"chars", trainer.chars()}}
            .dump() +
        "\n");
  else
    out(fmt::format("{}: {} tokens, trained on {} characters of {} file{}\n", flags.output,
                    tokenizer.vocab_size(), trainer.chars(), files.size(),
                    files.size() == 1 ? "" : "s"));
  if (tokenizer.vocab_size() < flags.options.vocab_size)
    talk(fmt::format("fewer than the {} asked for: the text has no more pairs to join\n",
                     flags.options.vocab_size));
  talk(fmt::format("\nnext: `tightloop data tokenize {} -o data.tok --tokenizer {}{}`\n",
                   joined(flags.inputs, " "), flags.output,
                   files.size() == 1 ? " --separator '\\n\\n'" : ""));
  return kDone;
}

struct CodeFlags {
  std::string tokenizer;
  std::string file;
  bool specials = false;
  bool json = false;
};

Tokenizer load(const CodeFlags& flags) {
  try {
    return Tokenizer::load(flags.tokenizer);
  } catch (Error& e) {
    throw e.with_context("cannot read the tokenizer")
        .with_hint(
            "the tokenizer comes first, then the text; "
            "`tightloop tokenizer train TEXT -o tokenizer.json` makes one");
  }
}

int run_encode(const CodeFlags& flags) {
  using Clock = std::chrono::steady_clock;
  const Tokenizer tokenizer = load(flags);
  const std::string text = read_all(flags.file);
  const Clock::time_point start = Clock::now();
  const std::vector<int32_t> ids =
      tokenizer.encode(text, flags.specials ? SpecialTokens::recognise : SpecialTokens::as_text);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const double rate = 1e-6 * static_cast<double>(text.size()) / std::max(seconds, 1e-9);
  if (flags.json) {
    out(OrderedJson{{"v", 1}, {"ids", ids}, {"bytes", text.size()}, {"mb_per_sec", rate}}.dump() +
        "\n");
    return kDone;
  }
  std::string line;
  for (size_t i = 0; i < ids.size(); ++i) line += (i > 0 ? " " : "") + std::to_string(ids[i]);
  out(line + "\n");
  talk(fmt::format("{} bytes, {} tokens: {:.1f} MB/s on one thread\n", text.size(), ids.size(),
                   rate));
  return kDone;
}

int run_decode(const CodeFlags& flags) {
  const Tokenizer tokenizer = load(flags);
  std::vector<int32_t> ids;
  std::string word;
  std::istringstream words(read_all(flags.file));
  while (words >> word) {
    int64_t id = 0;
    try {
      id = parse_integer(word);
    } catch (Error& e) {
      throw e.with_context("cannot read the ids")
          .with_hint("whole numbers with blanks between, as `tightloop tokenizer encode` prints");
    }
    if (id < 0 || id >= tokenizer.vocab_size())
      throw Error(ErrorKind::data, fmt::format("token {} is outside the vocabulary of {}", id,
                                               tokenizer.vocab_size()))
          .with_hint(fmt::format("ids are 0 to {}; decode with the tokenizer that encoded the text",
                                 tokenizer.vocab_size() - 1));
    ids.push_back(static_cast<int32_t>(id));
  }
  const std::string text = tokenizer.decode(ids);
  out(flags.json ? OrderedJson{{"v", 1}, {"text", text}}.dump() + "\n" : text);
  return kDone;
}

}  // namespace

void add_tokenizer(CLI::App& app, Runner& runner) {
  auto* group = app.add_subcommand("tokenizer", "train a byte-level BPE; text to ids and back");
  group->require_subcommand(0, 1);

  auto* train = group->add_subcommand("train", "train on text files or folders");
  auto t = std::make_shared<TrainTokenizerFlags>();
  train->add_option("input", t->inputs, "text files or folders")->required();
  train->add_option("-o,--output", t->output, "tokenizer.json to write")->required();
  train->add_option("--vocab-size", t->options.vocab_size, "bytes, merges and specials [32768]");
  train->add_option("--split", t->split, "split rule: nanochat or gpt2 [nanochat]");
  train->add_option("--max-chars", t->options.max_chars, "stop reading here [2000000000]");
  train->add_flag("--json", t->json, "one JSON object on stdout");
  train->footer("Example: tightloop tokenizer train books/ -o tok.json --vocab-size 8192");
  train->allow_extras();
  train->callback([t, &runner] { runner = [t] { return run_train_tokenizer(*t); }; });

  for (const bool encode : {true, false}) {
    auto* command = encode ? group->add_subcommand("encode", "text to ids")
                           : group->add_subcommand("decode", "ids to text");
    auto flags = std::make_shared<CodeFlags>();
    command->add_option("tokenizer", flags->tokenizer, "tokenizer.json or its folder")->required();
    command->add_option("file", flags->file, "input; standard input when not given");
    if (encode)
      command->add_flag("--specials", flags->specials, "recognise special tokens in the text");
    command->add_flag("--json", flags->json, "one JSON object on stdout");
    command->footer(encode
                        ? "Example: echo 'Once upon a time' | tightloop tokenizer encode tok.json"
                        : "Example: echo 12 3 45 | tightloop tokenizer decode tok.json");
    command->allow_extras();
    command->callback([flags, encode, &runner] {
      runner = [flags, encode] { return encode ? run_encode(*flags) : run_decode(*flags); };
    });
  }
}

}  // namespace tightloop::cli
