#include <algorithm>
#include <filesystem>
#include <limits>

#include "tightloop/core/file.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/io/host_info.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/data/synth.h"
#include "tightloop/train/derive.h"
#include "tightloop/train/memory_hint.h"
#include "tightloop/train/trainer_impl.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

}  // namespace

Trainer::Impl::Impl(const TrainConfig& c, const Options& options) : config(c) {
  if (config.threads) set_thread_count(static_cast<int>(*config.threads));
  cuda::set_generic_arch(config.generic_arch);
  cuda::set_debug_sync(config.debug_sync);
  for (const OptionSpec& spec : options.all())
    resolved_options[spec.key] = {{"value", spec.get()}, {"origin", spec.origin}};
  if (config.resume) resume_checkpoint = find_checkpoint(*config.resume);
  open_data();
  resolve();
  build();
}

void Trainer::Impl::open_data() {
  std::string folder_path = config.data;
  if (folder_path.empty()) {
    folder_path = (fs::path(home_folder()) / "corpus-small").string();
    make_corpus({.folder = folder_path});
  }
  plan.data = folder_path;
  const DatasetShards shards = find_shards(folder_path);
  if (shards.train.empty() || shards.val.empty())
    throw Error(ErrorKind::data,
                fmt::format("'{}' has {} training and {} validation shards; both are needed",
                            folder_path, shards.train.size(), shards.val.size()))
        .with_hint(
            "name the shards train_*.bin and val_*.bin, or make them with "
            "`tightloop data tokenize`");
  std::string tokenizer_path = folder_path;
  if (config.tokenizer) {
    tokenizer_path = *config.tokenizer;
  } else if (!fs::is_directory(folder_path)) {
    tokenizer_path = fs::path(shards.train[0]).parent_path().string();
  }
  try {
    tokenizer.emplace(Tokenizer::load(tokenizer_path));
  } catch (Error& e) {
    e.with_context("cannot read the tokenizer of the data");
    e.with_hint("say where it is with --tokenizer FILE");
    throw;
  }
  const std::optional<int32_t> bos = tokenizer->bos_id();
  if (!bos)
    fail(ErrorKind::data,
         "the tokenizer in '{}' has neither <|bos|> nor <|endoftext|>: documents "
         "have no beginning",
         tokenizer_path);
  byte_lengths = tokenizer->byte_lengths();
  train_documents = {
      .shards = shards.train,
      .bos = *bos,
      .vocab_size = tokenizer->vocab_size(),
      .data_seed = config.data_seed ? std::optional<uint64_t>(*config.data_seed) : std::nullopt};
  val_documents = {.shards = shards.val, .bos = *bos, .vocab_size = tokenizer->vocab_size()};
  for (const std::string& path : shards.train) {
    const TokenShard shard(path);
    shard.check_vocab(tokenizer->vocab_size());
    plan.train_tokens += shard.count();
  }
  DocumentStream stream(train_documents);
  plan.packing = default_packing(stream, config.max_seq_len);
}

void Trainer::Impl::resolve() {
  Derived d = derive(config, tokenizer->vocab_size());
  plan.model = d.model;
  if (!resume_checkpoint.empty()) {
    const NanochatConfig saved = load_checkpoint_config(resume_checkpoint);
    if (!(saved == plan.model))
      throw Error(ErrorKind::usage,
                  fmt::format("the checkpoint holds another model than the flags ask for: {} "
                              "against {}",
                              nanochat_config_json(saved), nanochat_config_json(plan.model)))
          .with_hint("leave out the model flags: --resume takes them from the run");
  }
  plan.sizes = d.sizes;
  plan.transfer = d.transfer;
  plan.rows_per_step = d.rows_per_step;
  plan.micro_steps = d.micro_steps;
  plan.groups = std::move(d.groups);
  plan.dtype = config.dtype;
  plan.param_data_ratio = static_cast<double>(d.transfer.batch) *
                          static_cast<double>(d.transfer.steps) /
                          static_cast<double>(d.sizes.scaling);
  if (d.device_batch_size != config.device_batch_size) {
    plan.notes.push_back(fmt::format("a step has {} sequences, so the micro-batch has too (not {})",
                                     d.rows_per_step, config.device_batch_size));
    config.device_batch_size = d.device_batch_size;
  }
  schedule = std::make_unique<Schedule>(config.recipe, d.transfer.steps, d.schedule);
  plan.schedule = d.schedule;
  plan.rates = d.rates;
  plan.target_ratio = d.param_data_ratio;
  if (config.target_metric != "val_bpb" && config.target_metric != "val_loss")
    throw Error(ErrorKind::usage, fmt::format("--target-metric '{}' must be val_bpb or val_loss",
                                              config.target_metric))
        .with_hint("`--target-metric val_bpb`, bits per byte, or `--target-metric val_loss`");

  // Validation: whole micro-batches, at most once over the validation tokens.
  const int64_t micro_tokens = config.device_batch_size * config.max_seq_len;
  int64_t available = 0;
  for (const std::string& path : val_documents.shards) available += TokenShard(path).count();
  if (available <= config.max_seq_len)
    throw Error(
        ErrorKind::data,
        fmt::format("the validation data has {} tokens; one row of sequence length {} needs {}",
                    available, config.max_seq_len, config.max_seq_len + 1))
        .with_hint("use more validation text, or a shorter --max-seq-len");
  plan.eval_batches = std::max<int64_t>(1, d.eval_tokens / micro_tokens);
  const int64_t most = std::max<int64_t>(1, available / micro_tokens);
  if (plan.eval_batches > most) {
    plan.notes.push_back(
        fmt::format("--eval-tokens {} is more than the {} validation tokens: evaluating on {}",
                    d.eval_tokens, available, most * micro_tokens));
    plan.eval_batches = most;
  }
  plan.eval_tokens = static_cast<double>(plan.eval_batches * micro_tokens);
}

TrainPrograms Trainer::Impl::build_programs(const NanochatConfig& model,
                                            int64_t micro_batch,
                                            const std::vector<ParameterGroup>& groups) const {
  return build_train_programs({.model = model,
                               .batch = micro_batch,
                               .rewrites = config.enabled_rewrites(),
                               .rewrite_options = config.rewrite_options(),
                               .device = config.device,
                               .dtype = config.dtype},
                              groups);
}

void Trainer::Impl::build() {
  const Clock::time_point start = Clock::now();
  programs = std::make_unique<TrainPrograms>(
      build_programs(plan.model, config.device_batch_size, plan.groups));
  plan.startup_ms = 1e3 * seconds_since(start);
  plan.memory = memory_table(*programs->slots, config.device, programs->plans());
  for (const MemoryLine& line : plan.memory) plan.memory_bytes += line.bytes;
}

int64_t Trainer::Impl::planned_bytes(int64_t micro_batch, int64_t depth) const {
  TrainConfig other = config;
  other.device_batch_size = micro_batch;
  other.depth = depth;
  Derived d;
  try {
    d = derive(other, tokenizer->vocab_size());
  } catch (const Error&) {
    return std::numeric_limits<int64_t>::max();  // no such run
  }
  const TrainPrograms p = build_programs(d.model, d.device_batch_size, d.groups);
  int64_t bytes = 0;
  for (const MemoryLine& line : memory_table(*p.slots, config.device, p.plans()))
    bytes += line.bytes;
  return bytes;
}

void Trainer::Impl::check_memory() const {
  const int64_t available = memory_available_on(config.device);
  if (plan.memory_bytes > available)
    fail_memory(fmt::format("{:.2f} GiB are free", static_cast<double>(available) / 0x1p30),
                available);
}

void Trainer::Impl::fail_memory(const std::string& limit, int64_t available) const {
  std::vector<MemoryLine> lines = plan.memory;
  std::sort(lines.begin(), lines.end(),
            [](const MemoryLine& a, const MemoryLine& b) { return a.bytes > b.bytes; });
  std::string table;
  for (const MemoryLine& line : lines)
    table += fmt::format("{}{} {:.2f}", table.empty() ? "" : ", ", line.purpose,
                         static_cast<double>(line.bytes) / 0x1p30);
  Error error(ErrorKind::oom,
              fmt::format("{}{:.2f} GiB, {}; by purpose (GiB): {}", kPlanTooLarge,
                          static_cast<double>(plan.memory_bytes) / 0x1p30, limit, table));
  error.with_hint(memory_hint(
      config.device_batch_size, plan.rows_per_step, config.depth, available,
      [this](int64_t micro_batch, int64_t depth) { return planned_bytes(micro_batch, depth); }));
  throw error.with_context("cannot start training");
}

void Trainer::Impl::allocate() {
  const Clock::time_point began = Clock::now();
  try {
    slots = std::make_unique<SlotStore>(programs->slots, config.device);
    workspace = std::make_unique<Workspace>(programs->plans());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::oom) throw;
    // How much it would give is not known.
    fail_memory(fmt::format("but the system refuses: {}", e.message()), plan.memory_bytes / 2);
  }
  if (config.device == Device::cuda) gemm_cache.emplace();
  const Clock::time_point start = Clock::now();
  const auto bind = [&](const PlannedProgram& p) {
    return std::make_unique<Executable>(p.program, p.plan, *slots, *workspace);
  };
  first = bind(programs->first_micro_step);
  next = bind(programs->next_micro_step);
  evaluation = bind(programs->evaluation);
  optimizer = bind(programs->optimizer);
  bind_ms = 1e3 * seconds_since(start);
  const SlotTable& table = slots->table();
  step_slots = {.tokens = table.get(kTokensSlot),
                .targets = table.get(kTargetsSlot),
                .loss = table.get(kLossSlot),
                .loss_scale = table.get(kLossScaleSlot),
                .grad_sum_squares = table.get(kGradSumSquares),
                .hypers = {}};
  for (const ParameterGroup& group : plan.groups)
    step_slots.hypers.push_back(table.get(hyper_name(group.name)));
  step_values = std::make_unique<StepValues>(*slots, step_slots.loss, step_slots.grad_sum_squares);
  init_rope_table(plan.model, slots->host("rope_table"));
  slots->push("rope_table");
  allocate_ms = 1e3 * seconds_since(began);
}

ValidationData Trainer::Impl::validation() const {
  ValidationData data{.tokenizer_sha256 = tokenizer->content_hash(),
                      .tokens = static_cast<int64_t>(plan.eval_tokens)};
  Sha256 hash;
  for (const std::string& path : val_documents.shards) {
    const MappedFile file(path);
    hash.update(file.data(), static_cast<size_t>(file.size()));
  }
  data.data_sha256 = hash.finish_hex();
  RowPacker packer(val_documents, config.max_seq_len);
  if (!packer.has_floor()) return data;
  Batch batch;
  double nats = 0.0;
  for (int64_t i = 0; i < plan.eval_batches; ++i) {
    fill_batch(packer, config.device_batch_size, batch);
    for (const float x : batch.floor) nats += x;
  }
  data.floor = nats / plan.eval_tokens;
  return data;
}

}  // namespace tightloop
