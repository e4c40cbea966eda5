#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/json.h"
#include "tightloop/core/threads.h"
#include "tightloop/decode/decoder.h"
#include "tightloop/io/safetensors.h"
#include "tightloop/text/tokenizer.h"
#include "tightloop/train/checkpoint.h"

namespace tightloop::cli {
namespace {

struct GenerateFlags {
  std::string checkpoint;
  std::string prompt;
  std::string dtype = "bf16";
  std::optional<int64_t> threads;
  GenerateOptions options{.max_tokens = 128};
  bool json = false;
};

int run_generate(GenerateFlags& flags) {
  if (flags.threads) set_thread_count(static_cast<int>(*flags.threads));
  const std::string checkpoint = find_checkpoint(flags.checkpoint);
  const NanochatConfig config = load_checkpoint_config(checkpoint);
  const Tokenizer tokenizer =
      Tokenizer::load(checkpoint + "/" + std::string(CheckpointFiles::kTokenizer));
  if (tokenizer.vocab_size() != config.vocab_size)
    fail(ErrorKind::data, "{}: the tokenizer has {} tokens, the model {}", checkpoint,
         tokenizer.vocab_size(), config.vocab_size);
  const std::optional<int32_t> bos = tokenizer.bos_id();
  std::vector<int32_t> prompt;
  if (bos) prompt.push_back(*bos);
  try {
    tokenizer.encode_append(flags.prompt, SpecialTokens::as_text, prompt);
  } catch (Error& e) {
    throw e.with_hint("use words of the training text; without --prompt a new document begins");
  }
  if (prompt.empty()) fail(ErrorKind::usage, "--prompt is empty and the tokenizer has no BOS");
  const auto needed = static_cast<int64_t>(prompt.size()) + flags.options.max_tokens;
  if (needed > config.sequence_len && !flags.json)
    talk(fmt::format("note: {} positions are more than the {} the model was trained with\n", needed,
                     config.sequence_len));

  Decoder decoder(config, parse_dtype(flags.dtype), needed);
  check_checkpoint_sum(checkpoint, CheckpointFiles::kModel);
  const SafetensorsFile weights(checkpoint + "/" + std::string(CheckpointFiles::kModel));
  for (const NanochatParameter& p : nanochat_parameters(config))
    decoder.set_parameter(p.name, weights.at(p.name));

  std::string text;
  std::optional<int32_t> previous;
  if (!flags.json) out(flags.prompt);
  const GenerateResult result =
      generate(decoder, prompt, flags.options, tokenizer.eos_id(), [&](int32_t token) {
        std::string piece;
        // The first word of a story needs no blank before it; after a prompt it does.
        if (!previous && !flags.prompt.empty()) previous = prompt.back();
        tokenizer.decode_next(previous, token, piece);
        previous = token;
        text += piece;
        if (!flags.json) out(piece);
        return !g_stop.load();
      });
  const double rate =
      static_cast<double>(result.tokens.size()) / std::max(result.decode_seconds, 1e-9);
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["checkpoint"] = checkpoint;
    json["prompt"] = flags.prompt;
    json["text"] = text;
    json["tokens"] = result.tokens;
    json["prompt_tokens"] = prompt.size();
    json["prompt_seconds"] = result.prompt_seconds;
    json["decode_seconds"] = result.decode_seconds;
    json["tok_per_sec"] = rate;
    json["stopped_at_eos"] = result.stopped_at_eos;
    json["weight_bytes_per_token"] = decoder.weight_bytes();
    // A byte-level model may write bytes that are no UTF-8.
    out(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
  } else {
    out("\n");
    talk(fmt::format("\n{} tokens, {:.0f} tok/s, {:.2f} GB/s of weights ({})\n",
                     result.tokens.size(), rate,
                     1e-9 * rate * static_cast<double>(decoder.weight_bytes()), flags.dtype));
  }
  return g_stop.load() ? kInterrupted : kDone;
}

}  // namespace

void add_generate(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand("generate", "text from a checkpoint, streamed");
  auto flags = std::make_shared<GenerateFlags>();
  SamplingOptions& sampling = flags->options.sampling;
  command->add_option("checkpoint", flags->checkpoint, "run folder or checkpoint")
      ->type_name("DIR")
      ->required();
  command->add_option("-p,--prompt", flags->prompt, "text to continue; empty: a new document");
  command->add_option("-n,--max-tokens", flags->options.max_tokens, "tokens at most [128]")
      ->type_name("tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24).description(""));
  command->add_option("--temperature", sampling.temperature, "0: always the most likely [1]");
  command->add_option("--top-k", sampling.top_k, "keep the k most likely; 0: all [0]");
  command->add_option("--top-p", sampling.top_p, "keep the fewest that hold this share [1]");
  command->add_option("--min-p", sampling.min_p, "keep those this likely against the best [0]");
  command->add_option("--seed", sampling.seed, "of the draws [0]");
  command->add_option("--dtype", flags->dtype, "storage of the weights: bf16 or f32 [bf16]");
  command->add_option("--threads", flags->threads, "CPU threads")
      ->type_name("INT")
      ->check(CLI::Range(1, 4096).description(""));
  command->add_flag_callback(
      "--no-stop", [flags] { flags->options.stop_at_eos = false; },
      "go on after the end of a document");
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->footer(
      "Example: tightloop generate runs/20260101-quick-abc123 --temperature 0.7 --seed 3");
  command->allow_extras();
  command->callback([flags, &runner] { runner = [flags] { return run_generate(*flags); }; });
}

}  // namespace tightloop::cli
