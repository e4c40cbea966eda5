#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/build_info.h"
#include "tightloop/core/cuda_device.h"
#include "tightloop/core/log.h"
#include "tightloop/core/threads.h"
#include "tightloop/io/csv.h"
#include "tightloop/io/host_info.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/train/trainer_impl.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

double mib(int64_t bytes) {
  return static_cast<double>(bytes) / 0x1p20;
}

/// K: the mean over the steps of rate x decay, as a share of its peak. With it an update is
/// remembered for tau / K.
double schedule_share(const Schedule& schedule) {
  double sum = 0.0;
  for (int64_t s = 0; s < schedule.steps(); ++s)
    sum += schedule.lr_multiplier(s) * schedule.weight_decay_multiplier(s);
  return sum / static_cast<double>(schedule.steps());
}

/// Of results.csv; "" for errors that are no status of a run or have been recorded as one.
std::string_view status_of(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::oom:
      return "oom";
    case ErrorKind::io:
      return "io_error";
    case ErrorKind::usage:
    case ErrorKind::shape:
    case ErrorKind::dtype:
    case ErrorKind::unsupported:
    case ErrorKind::data:
      return "config_error";
    default:
      return "";
  }
}

/// The row of a failed run must not hide why it failed.
template <typename Write>
void without_errors(const Write& write) {
  try {
    write();
  } catch (const Error& error) {
    log(LogLevel::warning, fmt::format("no row in results.csv: {}", error.message()));
  }
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

OrderedJson Trainer::Impl::run_json() const {
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
  if (config.device == Device::cuda) {
    const cuda::DeviceInfo gpu = cuda::device_info();
    json["gpu"] = {{"name", gpu.name},
                   {"compute", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)},
                   {"driver", gpu.driver_version},
                   {"runtime", gpu.runtime_version},
                   {"bf16_attention", attention_library()},
                   {"cublaslt", cublaslt_version()},
                   {"arch", config.generic_arch ? "generic" : "native"}};
  }
  json["threads"] = thread_count();
  json["gemm"] = config.device == Device::cuda ? "cuBLASLt" : gemm_kernel_name();
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
  json["device_batch_size"] = config.device_batch_size;
  json["rates"] = {{"matrix_lr", plan.rates.matrix_lr},
                   {"embedding_lr", plan.rates.embedding_lr},
                   {"unembedding_lr", plan.rates.unembedding_lr},
                   {"scalar_lr", plan.rates.scalar_lr},
                   {"weight_decay", plan.rates.weight_decay}};
  json["transfer_rule"] = "nanochat";
  json["b_opt_pred"] = plan.transfer.predicted_batch;
  json["lr_factor"] = plan.transfer.lr_factor;
  json["weight_decay"] = plan.transfer.weight_decay;
  if (std::isfinite(plan.transfer.tau)) {
    json["tau"] = plan.transfer.tau;
    json["tau_eff"] = plan.transfer.tau / schedule_share(*schedule);
  }
  OrderedJson memory;
  for (const MemoryLine& line : plan.memory) memory[line.purpose] = line.bytes;
  json["memory_plan_bytes"] = memory;
  return json;
}

double Trainer::Impl::process_seconds() const {
  return earlier_processes_s + seconds_since(kProcessStart);
}

void Trainer::Impl::fill_result() {
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
  if (folder) result.run_folder = folder->path();
}

double Trainer::Impl::smoothed(int64_t steps) const {
  return steps == 0 ? 0.0 : loss_ema / (1.0 - std::pow(kLossDecay, static_cast<double>(steps)));
}

OrderedJson Trainer::Impl::summary_json() const {
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
  json["plan_ms"] = plan.startup_ms;
  json["allocate_ms"] = allocate_ms;
  json["weights_ms"] = weights_ms;
  if (static_cast<int64_t>(history.size()) > first_step)
    json["first_step_ms"] =
        1e-6 * static_cast<double>(history[static_cast<size_t>(first_step)].dt_ns);
  json["programs_bound"] = bound_at_start;
  json["bind_ms"] = bind_ms;
  // "..._in_steps": in all counted steps of this process.
  json["counted_steps_of_process"] =
      std::count_if(history.begin() + first_step, history.end(),
                    [](const StepRecord& record) { return record.counted(); });
  json["plans_made_in_steps"] = made_in_steps.plans;
  json["programs_bound_in_steps"] = made_in_steps.binds;
  json["blocks_made_in_steps"] = made_in_steps.blocks;
  if (config.device == Device::cuda) {
    json["graphs_captured"] = programs_captured();
    json["capture_ms"] = 1e3 * capture_seconds();
    json["graphs_captured_in_steps"] = made_in_steps.captures;
    json["graph_breaks_in_steps"] = made_in_steps.breaks;
    json["device_allocations_in_steps"] = made_in_steps.allocations;
    json["device_syncs_in_steps"] = made_in_steps.syncs;
    json["gemm_products"] = used_gemm_choices().size();
    json["gemm_products_found"] = gemm_choices_found();
    json["gemm_products_timed"] = gemm_choices_timed();
    json["gemm_timing_ms"] = 1e3 * gemm_timing_seconds();
  }
  json["planned_bytes"] = result.planned_bytes;
  json["peak_bytes"] = result.peak_bytes;
  json["peak_resident_bytes"] = result.peak_resident_bytes;
  if (result.time_to_target_s) json["time_to_target_sec"] = *result.time_to_target_s;
  if (!result.last_checkpoint.empty())
    json["last_checkpoint"] = fs::path(result.last_checkpoint).filename().string();
  return json;
}

void Trainer::Impl::append_result_row() const {
  const auto measured = [this](double value) {
    return history.empty() ? std::optional<double>() : std::optional<double>(value);
  };
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
  row.add(measured(result.tokens_per_second)).add(measured(result.dt_median_ms));
  row.add(measured(result.counted_seconds)).add(measured(result.final_train_loss));
  row.add(result.min_val_bpb);
  row.add(result.peak_bytes > 0 ? std::optional<double>(mib(result.peak_bytes)) : std::nullopt);
  row.add(std::string_view(result.status));
  const fs::path runs = folder ? fs::path(folder->path()).parent_path() : fs::path(config.run_dir);
  append_csv_row((runs / "results.csv").string(), result_columns(), row);
}

void Trainer::Impl::record_failure(const Error& error) {
  result.status = status_of(error);
  if (error.kind() == ErrorKind::device && folder) result.status = "killed";  // lost its device
  // Of a run that could not be continued, the row is that of the process that began it.
  if (result.status.empty() || (!folder && !resume_checkpoint.empty())) return;
  without_errors([this] {
    fill_result();
    if (!folder) make_directories(config.run_dir);
    append_result_row();
  });
}

void Trainer::Impl::close(std::string status) {
  result.status = std::move(status);
  if (gemm_cache) gemm_cache->save_if_new();
  fill_result();
  folder->finish(summary_json());
  append_result_row();
}

void record_failure(const TrainConfig& config, const Error& error) {
  const std::string_view status = status_of(error);
  if (status.empty() || config.resume) return;
  CsvRow row;
  row.add(std::string_view(utc_timestamp())).add(std::string_view(build_info().commit));
  row.add(std::string_view(config.run)).add(config.seed).add(config.depth);
  row.add(config.max_seq_len).add(config.device_batch_size);
  const std::vector<std::string>& columns = result_columns();
  for (size_t i = static_cast<size_t>(row.fields()); i + 1 < columns.size(); ++i) {
    if (columns[i] == "extrapolation_method")
      row.add("none");
    else
      row.add_missing();
  }
  row.add(status);
  without_errors([&] {
    make_directories(config.run_dir);
    append_csv_row((fs::path(config.run_dir) / "results.csv").string(), columns, row);
  });
}

}  // namespace tightloop
