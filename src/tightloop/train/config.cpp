#include "tightloop/train/config.h"

#include "tightloop/engine/rewrite/rewrite.h"

namespace tightloop {
namespace {

/// A number of steps, or -1. Not 0, which would read as "at every step" as well as "at none".
void add_interval(Options& o, std::string flag, std::string key, int64_t* field, std::string help) {
  o.add_custom(
      std::move(flag), std::move(key), "steps", std::move(help),
      [field](const std::string& text) {
        const int64_t steps = parse_integer(text);
        if (steps < -1 || steps == 0)
          fail(ErrorKind::usage,
               "{} is no interval: expected 1 or more steps, or -1 to switch it off", steps);
        *field = steps;
      },
      [field] { return std::to_string(*field); });
}

}  // namespace

TrainConfig::TrainConfig() {
  for (const Rewrite& rewrite : all_rewrites())
    rewrites[std::string(rewrite.name)] = rewrite.on_by_default;
}

EvalWindow parse_eval_window(const std::string& text) {
  const size_t a = text.find(':'), b = a == std::string::npos ? a : text.find(':', a + 1);
  if (b == std::string::npos) fail(ErrorKind::usage, "'{}' is not FIRST:LAST:EVERY (steps)", text);
  EvalWindow window{.first = parse_integer(text.substr(0, a)),
                    .last = parse_integer(text.substr(a + 1, b - a - 1)),
                    .every = parse_integer(text.substr(b + 1))};
  if (window.first < 0 || window.last < window.first || window.every < 1)
    fail(ErrorKind::usage, "'{}': 0 <= FIRST <= LAST and EVERY >= 1 are needed", text);
  return window;
}

std::string to_string(const EvalWindow& window) {
  return fmt::format("{}:{}:{}", window.first, window.last, window.every);
}

RewriteOptions TrainConfig::rewrite_options() const {
  const int64_t usual = int64_t{device == Device::cuda ? 1024 : 64} << 20;
  return {.ce_chunk_bytes = ce_chunk_bytes.value_or(usual)};
}

std::vector<std::string> TrainConfig::enabled_rewrites() const {
  std::vector<std::string> names;
  for (const auto& [name, on] : rewrites) {
    if (on) names.push_back(name);
  }
  return names;
}

void declare_train_options(Options& o, TrainConfig& c) {
  const Range positive{1, 1e15}, share{0.0, 1.0}, non_negative{0.0};
  o.group("Model");
  o.add_custom(
      "recipe", "model.recipe", "", "2026-07 (default) or 2026-02: nanochat's training recipe",
      [&c](const std::string& text) { c.recipe = parse_recipe(text); },
      [&c] { return std::string(name_of(c.recipe)); });
  o.add("depth", "model.depth", &c.depth, "layers", "the one dial: everything else follows from it",
        {1, 1024});
  o.add("aspect-ratio", "model.aspect_ratio", &c.aspect_ratio, "", "width = depth x this",
        {1, 65536});
  o.add("head-dim", "model.head_dim", &c.head_dim, "",
        "size of an attention head; width is rounded "
        "up to a multiple",
        {2, 1024});
  o.add("max-seq-len", "model.max_seq_len", &c.max_seq_len, "tokens", "sequence length",
        {1, 1 << 24});
  o.add("window-pattern", "model.window_pattern", &c.window_pattern, "",
        "attention reach by layer: L whole sequence, S short; repeated; the last layer is L");

  o.group("Data");
  o.add("data", "data.path", &c.data, "",
        "folder with .bin shards and tokenizer.json; empty: the "
        "built-in story corpus");
  o.add("tokenizer", "data.tokenizer", &c.tokenizer, "",
        "tokenizer.json, when not beside the shards");
  o.add("data-seed", "data.seed", &c.data_seed, "", "shuffle documents; not set: file order",
        {0, 9e15});

  o.group("Horizon and batch");
  o.add("num-iterations", "train.num_iterations", &c.num_iterations, "steps",
        "steps to train; wins over the next two", positive);
  o.add("target-flops", "train.target_flops", &c.target_flops, "FLOPs",
        "train for this much compute", {1.0});
  o.add("target-param-data-ratio", "train.target_param_data_ratio", &c.target_param_data_ratio, "",
        "tokens per scaling parameter (recipe: 12 or 10.5)", {1e-9});
  o.add("device-batch-size", "train.device_batch_size", &c.device_batch_size, "sequences",
        "sequences of one micro-step", {1, 1 << 20});
  o.add("total-batch-size", "train.total_batch_size", &c.total_batch_size, "tokens",
        "tokens of one optimizer step (not set: predicted from the horizon)", positive);

  o.group("Optimizer");
  o.add("warmup-steps", "optim.warmup_steps", &c.warmup_steps, "steps",
        "linear warm-up of the learning rate (recipe: 40 or 0)", non_negative);
  o.add("warmdown-ratio", "optim.warmdown_ratio", &c.warmdown_ratio, "",
        "share of the steps in which the rate falls (recipe: 0.65 or 0.5)", share);
  o.add_custom(
      "warmdown-shape", "optim.warmdown_shape", "", "linear, cosine or sqrt",
      [&c](const std::string& text) { c.warmdown_shape = parse_warmdown_shape(text); },
      [&c] { return std::string(name_of(c.warmdown_shape)); });
  o.add("final-lr-frac", "optim.final_lr_frac", &c.final_lr_frac, "",
        "rate at the end as a share of the peak (recipe: 0.05 or 0)", share);
  o.add("matrix-lr", "optim.matrix_lr", &c.matrix_lr, "", "Muon (recipe: 0.02)", non_negative);
  o.add("embedding-lr", "optim.embedding_lr", &c.embedding_lr, "", "AdamW (recipe: 0.3)",
        non_negative);
  o.add("unembedding-lr", "optim.unembedding_lr", &c.unembedding_lr, "",
        "AdamW (recipe: 0.008 or 0.004)", non_negative);
  o.add("scalar-lr", "optim.scalar_lr", &c.scalar_lr, "", "AdamW (recipe: 0.5)", non_negative);
  o.add("weight-decay", "optim.weight_decay", &c.weight_decay, "", "Muon (recipe: 0.28 or 0.2)",
        non_negative);
  o.add("batch-mult", "optim.batch_mult", &c.batch_mult, "",
        "multiplies the batch; the coupled laws follow", {1e-6, 1e6});
  o.add("lr-mult", "optim.lr_mult", &c.lr_mult, "", "multiplies every coupled rate, after the laws",
        non_negative);
  o.add("wd-mult", "optim.wd_mult", &c.wd_mult, "", "multiplies the coupled decay, after the laws",
        non_negative);
  o.add("seed", "train.seed", &c.seed, "", "initialisation", {0, 9e15});

  o.group("Evaluation and checkpoints");
  add_interval(o, "eval-every", "eval.every", &c.eval_every,
               "validate every so many steps and at the end; -1: never");
  o.add_custom(
      "eval-window", "eval.window", "FIRST:LAST:EVERY",
      "steps of more evaluations, besides --eval-every; not set: none",
      [&c](const std::string& text) {
        if (text == "none") return c.eval_window.reset();
        c.eval_window = parse_eval_window(text);
      },
      [&c] { return c.eval_window ? to_string(*c.eval_window) : std::string(); });
  o.add("eval-tokens", "eval.tokens", &c.eval_tokens, "tokens",
        "tokens of one evaluation (recipe: 80 or 40 x 524,288, at most the validation set)",
        positive);
  add_interval(o, "sample-every", "eval.sample_every", &c.sample_every,
               "sample text every so many steps and at the end; -1: only at the end");
  o.add("target-metric", "eval.target_metric", &c.target_metric, "", "val_bpb or val_loss");
  o.add("target-threshold", "eval.target_threshold", &c.target_threshold, "",
        "the target metric at or below this is the target; `train` stops there");
  add_interval(o, "save-every", "checkpoint.every", &c.save_every,
               "save a checkpoint every so many steps and at the end; -1: only at the end");
  o.add("save-initial", "checkpoint.initial", &c.save_initial,
        "save the initial weights, too, as the checkpoint of step 0");
  o.add("keep-checkpoints", "checkpoint.keep", &c.keep_checkpoints, "", "how many checkpoints stay",
        {1, 1e6});

  o.refuse("core-metric-every", "the CORE tasks are not implemented");

  o.group("Run");
  o.add("run", "run.name", &c.run, "", "name of the run; part of its folder");
  o.add("run-dir", "run.dir", &c.run_dir, "", "where run folders are made");
  o.add("resume", "run.resume", &c.resume, "", "run folder or checkpoint to continue");
  o.add("allow-different-machine", "run.allow_different_machine", &c.allow_different_machine,
        "resume although the kernels or data differ from the checkpoint's");
  o.add_custom(
      "device", "run.device", "", "cpu, cuda, or ref (float64 reference, slow)",
      [&c](const std::string& text) { c.device = parse_device(text); },
      [&c] { return std::string(name_of(c.device)); });
  o.add_custom(
      "dtype", "run.dtype", "",
      "of products and activations: f32, or bf16 on cuda; parameters are f32",
      [&c](const std::string& text) {
        c.dtype = parse_dtype(text);
        if (c.dtype != DType::f32 && c.dtype != DType::bf16)
          fail(ErrorKind::usage, "--dtype {}: expected f32 or bf16", text);
      },
      [&c] { return std::string(name_of(c.dtype)); });
  o.add_custom(
      "arch", "run.arch", "",
      "native, or generic: on cuda only what every supported GPU has (sm_80 and later)",
      [&c](const std::string& text) {
        if (text != "native" && text != "generic")
          fail(ErrorKind::usage, "--arch {}: expected native or generic", text);
        c.generic_arch = text == "generic";
      },
      [&c] { return std::string(c.generic_arch ? "generic" : "native"); });
  o.add("debug-sync", "run.debug_sync", &c.debug_sync,
        "wait after every op, without graphs: a CUDA error names its op (slow)");
  o.add("threads", "run.threads", &c.threads, "", "CPU threads (not set: all cores)", {1, 4096});

  o.group("Rewrites");
  for (const Rewrite& rewrite : all_rewrites())
    o.add(std::string(rewrite.name), "rewrite." + std::string(rewrite.name),
          &c.rewrites[std::string(rewrite.name)], std::string(rewrite.help));
  o.add("ce-chunk-bytes", "rewrite.ce_chunk_bytes", &c.ce_chunk_bytes, "bytes",
        "budget of chunked-ce for logits and their gradient (not set: 64 MiB; on cuda 1 GiB)",
        {4096});
}

std::vector<std::string> train_preset_names() {
  return {"quick", "quick-lab"};
}

std::vector<std::pair<std::string, std::string>> train_preset(std::string_view name) {
  // Width 128: 3 x 42 rounded up to 4 heads of 32. Measured figures: docs/results.md.
  if (name == "quick")
    return {{"depth", "3"},
            {"aspect-ratio", "42"},
            {"head-dim", "32"},
            {"max-seq-len", "128"},
            {"window-pattern", "L"},
            {"device-batch-size", "64"},
            {"total-batch-size", "8192"},
            {"num-iterations", "200"},
            {"warmup-steps", "10"},
            {"eval-every", "25"},
            {"eval-tokens", "65536"},
            {"run", "quick"}};
  // A cell of the quick lab: evaluations small enough to be many.
  if (name == "quick-lab")
    return {{"depth", "2"},
            {"aspect-ratio", "64"},
            {"head-dim", "32"},
            {"max-seq-len", "128"},
            {"window-pattern", "L"},
            {"device-batch-size", "32"},
            {"total-batch-size", "4096"},
            {"num-iterations", "80"},
            {"warmup-steps", "10"},
            {"eval-every", "10"},
            {"eval-tokens", "8192"},
            {"sample-every", "-1"},
            {"run", "quick-lab"}};
  Error error(ErrorKind::usage, fmt::format("unknown preset '{}'", name));
  const std::string near = nearest_name(name, train_preset_names());
  error.with_hint(near.empty() ? std::string("the presets are quick and quick-lab")
                               : fmt::format("did you mean '--preset {}'?", near));
  throw error;
}

}  // namespace tightloop
