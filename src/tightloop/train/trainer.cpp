#include "tightloop/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sys/utsname.h>

#include <nlohmann/json.hpp>

#include "tightloop/core/build_info.h"
#include "tightloop/core/file.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/threads.h"
#include "tightloop/decode/decoder.h"
#include "tightloop/io/csv.h"
#include "tightloop/io/host_info.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/data/loader.h"
#include "tightloop/train/data/synth.h"
#include "tightloop/train/derive.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kUncountedSteps =
    11;  // at the start of each process, as nanochat leaves them out
constexpr double kLossDecay = 0.9;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

const Clock::time_point kProcessStart = Clock::now();

/// Where downloaded and generated data live: $TL_HOME, else ~/.cache/tightloop.
std::string home_folder() {
  if (const char* home = std::getenv("TL_HOME")) return home;
  if (const char* home = std::getenv("HOME")) return (fs::path(home) / ".cache/tightloop").string();
  return ".cache/tightloop";
}

double mib(int64_t bytes) {
  return static_cast<double>(bytes) / 0x1p20;
}

}  // namespace

struct Trainer::Impl {
  TrainConfig config;
  OrderedJson resolved_options;
  TrainPlan plan;
  std::optional<Tokenizer> tokenizer;
  DocumentOptions train_documents, val_documents;
  std::unique_ptr<Schedule> schedule;
  std::unique_ptr<TrainPrograms> programs;
  std::vector<int32_t> byte_lengths;
  std::string resume_checkpoint;  // empty: a new run
  std::string started = utc_timestamp();

  // Memory and what is bound to it: made in run().
  std::unique_ptr<SlotStore> slots;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<Executable> first, next, evaluation, optimizer;
  std::unique_ptr<RunFolder> folder;

  // Loop state.
  int64_t first_step = 0;
  int64_t process_steps = 0;
  double earlier_processes_s = 0.0;         // host time of the processes that this one continues
  double startup_s = 0.0;                   // process start to the first step
  int64_t step_plans = 0, step_blocks = 0;  // made inside counted steps: both must stay 0
  double loss_ema = 0.0;
  std::optional<double> min_val_bpb;
  std::vector<StepRecord> history;
  std::optional<double> time_to_target;
  DataCursor cursor;
  TrainResult result;
  Batch val_batch;

  Impl(const TrainConfig& c, const Options& options) : config(c) {
    if (config.threads) set_thread_count(static_cast<int>(*config.threads));
    for (const OptionSpec& spec : options.all())
      resolved_options[spec.key] = {{"value", spec.get()}, {"origin", spec.origin}};
    if (config.resume) resume_checkpoint = find_checkpoint(*config.resume);
    open_data();
    resolve();
    build();
  }

  void open_data() {
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

  /// Everything that follows from --depth and the flags.
  void resolve() {
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
    plan.param_data_ratio = static_cast<double>(d.transfer.batch) *
                            static_cast<double>(d.transfer.steps) /
                            static_cast<double>(d.sizes.scaling);
    if (d.device_batch_size != config.device_batch_size) {
      plan.notes.push_back(
          fmt::format("a step has {} sequences, so the micro-batch has too (not {})",
                      d.rows_per_step, config.device_batch_size));
      config.device_batch_size = d.device_batch_size;
    }
    schedule = std::make_unique<Schedule>(config.recipe, d.transfer.steps, d.schedule);
    plan.schedule = d.schedule;
    plan.target_ratio = d.param_data_ratio;
    if (config.target_metric != "val_bpb" && config.target_metric != "val_loss")
      fail(ErrorKind::usage, "--target-metric '{}' must be val_bpb or val_loss",
           config.target_metric);

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

  void build() {
    const Clock::time_point start = Clock::now();
    programs = std::make_unique<TrainPrograms>(
        build_train_programs({.model = plan.model,
                              .batch = config.device_batch_size,
                              .rewrites = config.enabled_rewrites(),
                              .rewrite_options = {.ce_chunk_bytes = config.ce_chunk_bytes},
                              .device = config.device},
                             plan.groups));
    plan.startup_ms = 1e3 * seconds_since(start);
    plan.memory = memory_table(*programs->slots, config.device, programs->plans());
    for (const MemoryLine& line : plan.memory) plan.memory_bytes += line.bytes;
  }

  void check_memory() const {
    const int64_t available = memory_available_bytes();
    if (plan.memory_bytes > available)
      fail_memory(fmt::format("{:.2f} GiB are free", static_cast<double>(available) / 0x1p30));
  }

  /// The plan by purpose, and the flag that helps most.
  [[noreturn]] void fail_memory(const std::string& limit) const {
    std::vector<MemoryLine> lines = plan.memory;
    std::sort(lines.begin(), lines.end(),
              [](const MemoryLine& a, const MemoryLine& b) { return a.bytes > b.bytes; });
    std::string table;
    for (const MemoryLine& line : lines)
      table += fmt::format("{}{} {:.2f}", table.empty() ? "" : ", ", line.purpose,
                           static_cast<double>(line.bytes) / 0x1p30);
    Error error(ErrorKind::oom,
                fmt::format("the plan needs {:.2f} GiB, {}; by purpose (GiB): {}",
                            static_cast<double>(plan.memory_bytes) / 0x1p30, limit, table));
    if (lines[0].purpose == "activations" && config.device_batch_size > 1)
      error.with_hint(fmt::format("use a smaller micro-batch: `--device-batch-size {}`",
                                  config.device_batch_size / 2));
    else
      error.with_hint(
          fmt::format("use a smaller model: `--depth {}`", std::max<int64_t>(1, config.depth / 2)));
    throw error.with_context("cannot start training");
  }

  void allocate() {
    try {
      slots = std::make_unique<SlotStore>(programs->slots, config.device);
      workspace = std::make_unique<Workspace>(programs->plans());
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::oom) throw;
      fail_memory(fmt::format("but the system refuses: {}", e.message()));
    }
    const auto bind = [&](const PlannedProgram& p) {
      return std::make_unique<Executable>(p.program, p.plan, *slots, *workspace);
    };
    first = bind(programs->first_micro_step);
    next = bind(programs->next_micro_step);
    evaluation = bind(programs->evaluation);
    optimizer = bind(programs->optimizer);
    init_rope_table(plan.model, slots->view("rope_table"));
  }

  // ---- state ----

  OrderedJson state_json(int64_t step) const {
    OrderedJson json;
    json["format"] = 1;
    json["step"] = step;
    json["recipe"] = name_of(config.recipe);
    json["loss_ema"] = loss_ema;
    if (min_val_bpb) json["min_val_bpb"] = *min_val_bpb;
    if (time_to_target) json["time_to_target_sec"] = *time_to_target;
    json["process_sec"] = process_seconds();
    json["data"] = to_json(cursor);
    json["tokenizer"] = tokenizer->content_hash();
    json["kernels"] = kernels();
    json["data_path"] = plan.data;
    json["options"] = resolved_options;
    return json;
  }

  /// What bits depend on besides the flags.
  std::string kernels() const {
    return fmt::format("{} {} {}", build_info().compiler, name_of(config.device),
                       gemm_kernel_name());
  }

  void restore() {
    const Json state = load_checkpoint_state(resume_checkpoint);
    const std::string where = resume_checkpoint + "/state.json";
    first_step = get_int(state, "step", where);
    loss_ema = get_double(state, "loss_ema", where);
    if (find_field(state, "min_val_bpb", where) != nullptr)
      min_val_bpb = get_double(state, "min_val_bpb", where);
    if (find_field(state, "time_to_target_sec", where) != nullptr)
      time_to_target = get_double(state, "time_to_target_sec", where);
    earlier_processes_s = get_double(state, "process_sec", where, 0.0);
    cursor = data_cursor_from_json(get_object(state, "data", where));
    const std::string hash = get_string(state, "tokenizer", where);
    if (hash != tokenizer->content_hash())
      fail(ErrorKind::data, "the tokenizer of '{}' is not the one the checkpoint was trained with",
           plan.data);
    const std::string then = get_string(state, "kernels", where);
    if (then != kernels() && !config.allow_different_machine)
      throw Error(
          ErrorKind::usage,
          fmt::format("the checkpoint was made with '{}', this is '{}': the bits would differ",
                      then, kernels()))
          .with_hint("resume with --allow-different-machine");
    if (first_step > plan.transfer.steps)
      fail(ErrorKind::usage, "the checkpoint is at step {}, the run has only {}", first_step,
           plan.transfer.steps);
    load_checkpoint_slots(resume_checkpoint, *slots, true);
  }

  void initialise() {
    for (const NanochatParameter& p : programs->parameters)
      init_parameter(p, static_cast<uint64_t>(config.seed), slots->view(p.name));
  }

  /// A checkpoint that cannot be trained from must not look like the last good one.
  void expect_finite_state(int64_t step) const {
    for (const Slot& slot : slots->table().all()) {
      if (slot.role != SlotRole::parameter && slot.role != SlotRole::optimizer) continue;
      const TensorView t = slots->view(slot.name);
      for (int64_t i = 0; i < t.elems(); ++i) {
        const double x = t.dtype() == DType::f32 ? t.as<float>()[i] : get_element(t, i);
        if (std::isfinite(x)) continue;
        throw Error(ErrorKind::numeric,
                    fmt::format("nothing saved at step {}; first non-finite value: {} of '{}', "
                                "element {}",
                                step, x, slot.name, i))
            .with_hint(recovery_hint());
      }
    }
  }

  std::string recovery_hint() const {
    if (result.last_checkpoint.empty())
      return "no checkpoint was saved yet; try a lower rate: `--lr-mult 0.5`";
    return fmt::format(
        "last good checkpoint: {}; continue it with `tightloop train --resume {} --lr-mult 0.5`",
        result.last_checkpoint, result.last_checkpoint);
  }

  std::string save(int64_t step, TrainObserver& observer) {
    expect_finite_state(step);
    folder->flush();
    const std::string path = folder->file(fmt::format("checkpoints/{}", checkpoint_name(step)));
    save_checkpoint(path, *slots, plan.model, state_json(step), tokenizer->to_json());
    prune_checkpoints(folder->file("checkpoints"), config.keep_checkpoints);
    result.last_checkpoint = path;
    observer.on_checkpoint(path);
    return path;
  }

  double process_seconds() const { return earlier_processes_s + seconds_since(kProcessStart); }

  ValidationData validation() const {
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

  void copy_checkpoint(const std::string& to) {
    TL_CHECK(!resume_checkpoint.empty());
    allocate();
    restore();
    save_checkpoint(to, *slots, plan.model, state_json(first_step), tokenizer->to_json());
  }

  // ---- one step ----

  /// Counted steps' time, and for each uncounted one the median of the first 50 counted.
  double train_clock() const {
    double counted = 0.0;
    int64_t uncounted = 0;
    std::vector<double> early;
    for (const StepRecord& r : history) {
      const double dt = static_cast<double>(r.dt_ns) * 1e-9;
      if (!r.counted()) {
        ++uncounted;
        continue;
      }
      counted += dt;
      if (early.size() < 50) early.push_back(dt);
    }
    if (early.empty()) {
      for (const StepRecord& r : history) counted += static_cast<double>(r.dt_ns) * 1e-9;
      return counted;
    }
    return counted + static_cast<double>(uncounted) * median(early);
  }

  [[noreturn]] void fail_non_finite(int64_t step, Executable& micro, double loss) {
    const std::optional<NonFinite> found = micro.run_checked();
    throw Error(ErrorKind::numeric,
                fmt::format("the loss became {} at step {}; first non-finite value: {}", loss, step,
                            found ? found->what : "not found again when the step was repeated"))
        .with_hint(recovery_hint());
  }

  StepRecord train_step(int64_t step, BatchLoader& loader) {
    const Clock::time_point start = Clock::now();
    const int64_t plans = plans_made(), blocks = memory_blocks_made();
    const Batch& batch = loader.next();
    const int64_t B = config.device_batch_size, T = config.max_seq_len;
    const TensorView tokens = slots->view(kTokensSlot), targets = slots->view(kTargetsSlot);
    const TensorView loss_slot = slots->view(kLossSlot);
    set_element(slots->view(kLossScaleSlot), 0, 1.0 / static_cast<double>(plan.transfer.batch));
    for (int64_t m = 0; m < plan.micro_steps; ++m) {
      const int64_t rows = std::min(B, plan.rows_per_step - m * B);
      const int32_t* from_tokens = batch.tokens.data() + m * B * T;
      const int32_t* from_targets = batch.targets.data() + m * B * T;
      std::copy(from_tokens, from_tokens + rows * T, tokens.as<int32_t>());
      std::copy(from_targets, from_targets + rows * T, targets.as<int32_t>());
      // A partial last micro-batch is a full one whose surplus targets are ignored.
      std::fill(tokens.as<int32_t>() + rows * T, tokens.as<int32_t>() + B * T, 0);
      std::fill(targets.as<int32_t>() + rows * T, targets.as<int32_t>() + B * T, -1);
      Executable& micro = m == 0 ? *first : *next;
      micro.run();
      const double so_far = get_element(loss_slot, 0);
      if (!std::isfinite(so_far)) fail_non_finite(step, micro, so_far);
    }
    write_hypers(plan.groups, *schedule, step,
                 [&](std::string_view name, std::span<const double> values) {
                   const TensorView slot = slots->view(name);
                   for (size_t i = 0; i < values.size(); ++i)
                     set_element(slot, static_cast<int64_t>(i), values[i]);
                 });
    optimizer->run();
    cursor = batch.cursor;

    StepRecord record;
    record.step = step;
    record.tokens = (step + 1) * plan.transfer.batch;
    record.loss = get_element(loss_slot, 0);
    record.lr_multiplier = static_cast<float>(schedule->lr_multiplier(step));
    record.weight_decay =
        static_cast<float>(plan.transfer.weight_decay * schedule->weight_decay_multiplier(step));
    record.momentum = static_cast<float>(schedule->muon_momentum(step));
    record.grad_norm = static_cast<float>(std::sqrt(get_element(slots->view(kGradSumSquares), 0)));
    record.flags = process_steps < kUncountedSteps ? 1 : 0;
    ++process_steps;
    if (record.counted()) {
      step_plans += plans_made() - plans;
      step_blocks += memory_blocks_made() - blocks;
    }
    record.dt_ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
    return record;
  }

  EvalReport evaluate_now(int64_t step) {
    EvalReport report;
    report.evaluation =
        evaluate(*evaluation, *slots, val_documents, plan.eval_batches, byte_lengths, val_batch);
    report.steps = plan.transfer.steps;
    report.record = {.step = step,
                     .tokens = step * plan.transfer.batch,
                     .clock_sec = train_clock(),
                     .val_bpb = report.evaluation.bits_per_byte(),
                     .val_loss = report.evaluation.loss(),
                     .floor = report.evaluation.has_floor
                                  ? std::optional<double>(report.evaluation.floor())
                                  : std::nullopt,
                     .process_sec = process_seconds()};
    return report;
  }

  /// Text from the present weights. Prompt: the beginning of a document.
  std::string sample_text() {
    const int64_t positions = std::max<int64_t>(2, std::min<int64_t>(config.max_seq_len, 192));
    Decoder decoder(plan.model, DType::f32, positions, slots.get());
    const std::vector<int32_t> prompt{train_documents.bos};
    std::string text;
    std::optional<int32_t> previous;
    generate(decoder, prompt,
             {.max_tokens = positions - 1, .sampling = {.temperature = 0.7, .seed = 1}},
             train_documents.bos, [&](int32_t token) {
               tokenizer->decode_next(previous, token, text);
               previous = token;
               return true;
             });
    return text;
  }

  OrderedJson run_json() const {
    const BuildInfo& build = build_info();
    const HostInfo host = host_info();
    OrderedJson json;
    json["format"] = 1;
    json["started"] = started;
    json["command"] = "train";
    json["options"] = resolved_options;
    json["build"] = {
        {"version", build.version},   {"commit", build.commit}, {"diff_sha256", build.diff_sha256},
        {"compiler", build.compiler}, {"flags", build.flags},   {"preset", build.preset}};
    json["host"] = {{"name", host.hostname},     {"os", host.os},
                    {"kernel", host.kernel},     {"cpu", host.cpu_model},
                    {"cpus", host.logical_cpus}, {"memory_bytes", host.memory_total_bytes}};
    for (const char* name : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}) {
      if (const char* value = std::getenv(name)) json["host"][name] = value;
    }
    json["device"] = name_of(config.device);
    json["threads"] = thread_count();
    json["gemm"] = gemm_kernel_name();
    json["seed"] = config.seed;
    if (config.data_seed) json["data_seed"] = *config.data_seed;
    json["data"] = {{"path", plan.data},
                    {"train_tokens", plan.train_tokens},
                    {"packing", name_of(plan.packing)},
                    {"tokenizer_sha256", tokenizer->content_hash()},
                    {"vocab_size", tokenizer->vocab_size()}};
    json["model"] = OrderedJson::parse(nanochat_config_json(plan.model));
    json["parameters"] = plan.sizes.parameters;
    json["scaling_parameters"] = plan.sizes.scaling;
    json["flops_per_token"] = plan.sizes.flops_per_token;
    json["steps"] = plan.transfer.steps;
    json["total_batch_size"] = plan.transfer.batch;
    json["target_param_data_ratio"] = plan.target_ratio;
    json["warmup_steps"] = plan.schedule.warmup_steps;
    json["warmdown_ratio"] = plan.schedule.warmdown_ratio;
    json["warmdown_shape"] = name_of(plan.schedule.warmdown_shape);
    json["final_lr_frac"] = plan.schedule.final_lr_frac;
    json["weight_decay"] = plan.transfer.weight_decay;
    json["lr_factor"] = plan.transfer.lr_factor;
    OrderedJson memory;
    for (const MemoryLine& line : plan.memory) memory[line.purpose] = line.bytes;
    json["memory_plan_bytes"] = memory;
    return json;
  }

  void fill_result() {
    std::vector<double> dts;
    result.counted_seconds = 0.0;
    for (const StepRecord& r : history) {
      if (!r.counted()) continue;
      dts.push_back(static_cast<double>(r.dt_ns) * 1e-9);
      result.counted_seconds += dts.back();
    }
    if (dts.empty()) {
      for (const StepRecord& r : history) dts.push_back(static_cast<double>(r.dt_ns) * 1e-9);
    }
    const double dt = median(dts);
    result.dt_median_ms = 1e3 * dt;
    result.tokens_per_second = dt > 0 ? static_cast<double>(plan.transfer.batch) / dt : 0.0;
    result.train_seconds = train_clock();
    result.final_train_loss = smoothed(static_cast<int64_t>(history.size()));
    result.min_val_bpb = min_val_bpb;
    result.planned_bytes = plan.memory_bytes;
    result.peak_bytes = peak_memory_block_bytes();
    result.peak_resident_bytes = peak_resident_bytes();
    result.time_to_target_s = time_to_target;
    result.run_folder = folder->path();
  }

  double smoothed(int64_t steps) const {
    return steps == 0 ? 0.0 : loss_ema / (1.0 - std::pow(kLossDecay, static_cast<double>(steps)));
  }

  OrderedJson summary_json() const {
    OrderedJson json;
    json["format"] = 1;
    json["status"] = result.status;
    json["finished"] = utc_timestamp();
    json["steps"] = result.steps_done;
    json["final_train_loss"] = result.final_train_loss;
    if (result.last_eval) {
      const EvalRecord& r = result.last_eval->record;
      json["val_loss"] = r.val_loss;
      json["val_bpb"] = r.val_bpb;
      if (r.floor) {
        json["floor"] = *r.floor;
        json["excess"] = r.val_loss - *r.floor;
      }
    }
    if (result.min_val_bpb) json["min_val_bpb"] = *result.min_val_bpb;
    json["train_clock_sec"] = result.train_seconds;
    json["counted_sec"] = result.counted_seconds;
    json["tok_per_sec_median"] = result.tokens_per_second;
    json["dt_median_ms"] = result.dt_median_ms;
    json["process_sec"] = process_seconds();
    json["startup_sec"] = startup_s;
    if (!history.empty()) json["first_step_ms"] = 1e-6 * static_cast<double>(history[0].dt_ns);
    json["plans_made_in_steps"] = step_plans;
    json["blocks_made_in_steps"] = step_blocks;
    json["planned_bytes"] = result.planned_bytes;
    json["peak_bytes"] = result.peak_bytes;
    json["peak_resident_bytes"] = result.peak_resident_bytes;
    if (result.time_to_target_s) json["time_to_target_sec"] = *result.time_to_target_s;
    if (!result.last_checkpoint.empty())
      json["last_checkpoint"] = fs::path(result.last_checkpoint).filename().string();
    return json;
  }

  void append_result_row() const {
    CsvRow row;
    row.add(std::string_view(started)).add(std::string_view(build_info().commit));
    row.add(std::string_view(config.run)).add(config.seed).add(config.depth);
    row.add(config.max_seq_len).add(config.device_batch_size).add(plan.transfer.batch);
    row.add(config.target_param_data_ratio.value_or(default_param_data_ratio(config.recipe)));
    row.add(schedule->options().warmdown_ratio);
    row.add(name_of(schedule->options().warmdown_shape));
    if (config.target_threshold)
      row.add(std::string_view(config.target_metric)).add(*config.target_threshold);
    else
      row.add_missing().add_missing();
    row.add(result.time_to_target_s).add_missing().add("none");
    row.add(result.tokens_per_second).add(result.dt_median_ms).add(result.counted_seconds);
    row.add(result.final_train_loss).add(result.min_val_bpb).add(mib(result.peak_bytes));
    row.add(std::string_view(result.status));
    append_csv_row((fs::path(folder->path()).parent_path() / "results.csv").string(),
                   result_columns(), row);
  }

  void close(std::string status) {
    result.status = std::move(status);
    fill_result();
    folder->finish(summary_json());
    append_result_row();
  }

  TrainResult run(TrainObserver& observer, const std::atomic<bool>& stop) {
    check_memory();
    observer.on_plan(plan);
    allocate();
    if (resume_checkpoint.empty()) {
      initialise();
      folder = RunFolder::create(config.run_dir, config.run);
    } else {
      restore();
      const fs::path checkpoint = fs::absolute(resume_checkpoint).lexically_normal();
      folder = RunFolder::reopen(checkpoint.parent_path().parent_path().string(), first_step);
      if (fs::exists(folder->file("steps.bin"))) history = read_steps(folder->file("steps.bin"));
      if (static_cast<int64_t>(history.size()) != first_step)
        fail(ErrorKind::data, "{} holds {} steps, the checkpoint is at step {}",
             folder->file("steps.bin"), history.size(), first_step);
      result.last_checkpoint = resume_checkpoint;
    }
    folder->write_run_json(run_json());
    observer.on_start(folder->path(), first_step);
    history.reserve(static_cast<size_t>(plan.transfer.steps));
    try {
      loop(observer, stop);
    } catch (Error& e) {
      folder->add_log(std::string("error: ") + e.what());
      if (e.kind() == ErrorKind::numeric) close("nonfinite");
      if (e.kind() == ErrorKind::io)
        e.with_context(
            fmt::format("training stopped at step {}; {}", result.steps_done,
                        result.last_checkpoint.empty()
                            ? std::string("no checkpoint was saved yet")
                            : fmt::format("continue from {} with `tightloop train --resume {}`",
                                          fs::path(result.last_checkpoint).filename().string(),
                                          folder->path())));
      throw;
    }
    return result;
  }

  bool evaluation_due(int64_t step) const {
    const bool window = config.eval_window && config.eval_window->due(step);
    return window ||
           (config.eval_every > 0 && (step == plan.transfer.steps || due(config.eval_every, step)));
  }

  bool due(int64_t every, int64_t step) const { return every > 0 && step % every == 0; }

  void loop(TrainObserver& observer, const std::atomic<bool>& stop) {
    const int64_t N = plan.transfer.steps;
    const std::optional<DataCursor> from =
        cursor.identity.empty() ? std::nullopt : std::optional<DataCursor>(cursor);
    BatchLoader loader(train_documents, plan.rows_per_step, config.max_seq_len, from);
    startup_s = seconds_since(kProcessStart);
    const Clock::time_point start = Clock::now();
    double previous_metric = 0.0, previous_clock = 0.0;
    for (int64_t step = first_step;; ++step) {
      const bool last = step == N, resumed_here = step == first_step && step > 0;
      result.steps_done = step;
      if (evaluation_due(step) && !resumed_here) {
        EvalReport report = evaluate_now(step);
        const double bpb = report.record.val_bpb;
        min_val_bpb = std::min(min_val_bpb.value_or(bpb), bpb);
        folder->add_eval(report.record);
        observer.on_eval(report);
        result.last_eval = report;
        if (config.target_threshold) {
          const double metric = config.target_metric == "val_bpb" ? bpb : report.record.val_loss;
          if (metric <= *config.target_threshold && !time_to_target) {
            // Linear between the last two evaluations; the lab measures with more care.
            const double share =
                step == first_step || previous_metric <= metric
                    ? 1.0
                    : (previous_metric - *config.target_threshold) / (previous_metric - metric);
            time_to_target = previous_clock + share * (report.record.clock_sec - previous_clock);
            result.reached_target = true;
          }
          previous_metric = metric;
          previous_clock = report.record.clock_sec;
        }
      }
      const bool finished = last || result.reached_target;
      if (finished || (step > 0 && due(config.sample_every, step) && !resumed_here)) {
        if (config.device == Device::cpu) observer.on_sample(step, "", sample_text());
      }
      const bool stopping = stop.load(std::memory_order_relaxed);
      if (finished || stopping || (step > 0 && due(config.save_every, step) && !resumed_here)) {
        if (!(resumed_here && step == first_step)) save(step, observer);
      }
      if (stopping && !finished) {
        result.interrupted = true;
        close("killed");
        return;
      }
      if (finished) {
        close("ok");
        return;
      }
      const StepRecord record = train_step(step, loader);
      loss_ema = kLossDecay * loss_ema + (1.0 - kLossDecay) * record.loss;
      history.push_back(record);
      folder->add_step(record);
      StepReport report;
      report.record = record;
      report.steps = N;
      report.smoothed_loss = smoothed(step + 1);
      report.tokens_per_second =
          static_cast<double>(plan.transfer.batch) / (static_cast<double>(record.dt_ns) * 1e-9);
      report.elapsed_s = seconds_since(start);
      report.eta_s = report.elapsed_s / static_cast<double>(step + 1 - first_step) *
                     static_cast<double>(N - step - 1);
      observer.on_step(report);
    }
  }
};

Trainer::Trainer(const TrainConfig& config, const Options& options)
    : impl_(std::make_unique<Impl>(config, options)) {}
Trainer::~Trainer() = default;

const TrainPlan& Trainer::plan() const {
  return impl_->plan;
}
const TrainPrograms& Trainer::programs() const {
  return *impl_->programs;
}

ValidationData Trainer::validation() const {
  return impl_->validation();
}

void Trainer::copy_checkpoint(const std::string& folder) {
  impl_->copy_checkpoint(folder);
}

TrainResult Trainer::run(TrainObserver& observer, const std::atomic<bool>& stop) {
  return impl_->run(observer, stop);
}

}  // namespace tightloop
