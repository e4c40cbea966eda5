#include "tightloop/lab/run_row.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/csv.h"
#include "tightloop/lab/stability.h"
#include "tightloop/lab/statistics.h"
#include "tightloop/train/run_record.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::string in(const std::string& folder, std::string_view name) {
  return (fs::path(folder) / name).string();
}

/// Whether the file is there and holds something: a full disk or a kill leaves empty ones.
bool holds_something(const std::string& path) {
  return fs::exists(path) && fs::file_size(path) > 0;
}

/// The file as JSON, or an empty object when it is missing.
Json json_of(const std::string& path) {
  return holds_something(path) ? read_json(path, 1 << 26) : Json::object();
}

/// Numbers in a file: a text that is none is an error of the file.
template <typename Parse>
auto parsed(const Parse& parse, const std::string& text, const std::string& where) {
  try {
    return parse(text);
  } catch (const Error& error) {
    fail(ErrorKind::data, "{}: {}", where, error.message());
  }
}
int64_t integer_of(const std::string& text, const std::string& where) {
  return parsed(parse_integer, text, where);
}
double number_of(const std::string& text, const std::string& where) {
  return parsed(parse_number, text, where);
}

/// Copies fields of a JSON object into columns, as far as they are there.
class Copier {
 public:
  Copier(LedgerRow& row, const Json& from, std::string where)
      : row_(row), from_(from), where_(std::move(where)) {}
  void text(std::string_view column, std::string_view field) const {
    if (find_field(from_, field, where_) != nullptr)
      row_.set(column, get_string(from_, field, where_));
  }
  void integer(std::string_view column, std::string_view field) const {
    if (find_field(from_, field, where_) != nullptr)
      row_.set(column, get_int(from_, field, where_));
  }
  void number(std::string_view column, std::string_view field, double scale = 1.0) const {
    if (find_field(from_, field, where_) != nullptr)
      row_.set(column, scale * get_double(from_, field, where_));
  }

 private:
  LedgerRow& row_;
  const Json& from_;
  std::string where_;
};

/// An option of train as run.json has it: its text, "" when not set.
std::string option(const Json& run, std::string_view key, const std::string& where) {
  const Json* options = find_field(run, "options", where);
  if (options == nullptr) return "";
  const Json* entry = find_field(*options, key, where);
  return entry == nullptr ? "" : get_string(*entry, "value", where);
}

double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

void add_identity(LedgerRow& row, const Json& run, const std::string& where) {
  const Copier from(row, run, where);
  from.text("timestamp", "started");
  from.text("device", "device");
  from.integer("threads", "threads");
  from.integer("params_total", "parameters");
  from.integer("params_scaling", "scaling_parameters");
  from.integer("flops_per_token", "flops_per_token");
  from.integer("num_iterations", "steps");
  from.integer("total_batch_size", "total_batch_size");
  from.number("target_param_data_ratio", "target_param_data_ratio");
  from.number("warmdown_ratio", "warmdown_ratio");
  from.text("warmdown_shape", "warmdown_shape");
  from.integer("warmup_steps", "warmup_steps");
  from.number("final_lr_frac", "final_lr_frac");
  from.integer("device_batch_size", "device_batch_size");
  from.text("transfer_rule", "transfer_rule");
  from.number("b_opt_pred", "b_opt_pred");
  from.number("lr_factor", "lr_factor");
  from.number("weight_decay_scaled", "weight_decay");
  from.number("tau", "tau");
  from.number("tau_eff", "tau_eff");
  if (const Json* rates = find_field(run, "rates", where)) {
    const Copier of_rates(row, *rates, where);
    for (const char* name :
         {"matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr", "weight_decay"})
      of_rates.number(name, name);
  }
  if (const Json* build = find_field(run, "build", where)) {
    const Copier of_build(row, *build, where);
    of_build.text("git_commit", "commit");
    of_build.text("dirty_hash", "diff_sha256");
  }
  if (const Json* host = find_field(run, "host", where)) {
    const Copier of_host(row, *host, where);
    of_host.text("host", "name");
    of_host.text("cpu", "cpu");
  }
  if (const Json* gpu = find_field(run, "gpu", where)) {
    const Copier of_gpu(row, *gpu, where);
    of_gpu.text("gpu_name", "name");
    of_gpu.text("driver", "driver");
    of_gpu.text("cuda", "runtime");
  }
  if (const Json* data = find_field(run, "data", where))
    Copier(row, *data, where).text("tokenizer_hash", "tokenizer_sha256");
  if (const Json* model = find_field(run, "model", where)) {
    const Copier of_model(row, *model, where);
    of_model.integer("depth", "n_layer");
    of_model.integer("max_seq_len", "sequence_len");
    of_model.integer("n_embd", "n_embd");
    of_model.integer("n_head", "n_head");
    of_model.text("window_pattern", "window_pattern");
    if (find_field(*model, "n_head", where) != nullptr) {
      const int64_t heads = get_int(*model, "n_head", where);
      if (heads < 1) fail(ErrorKind::data, "{}: n_head is {}", where, heads);
      row.set("head_dim", get_int(*model, "n_embd", where) / heads);
    }
  }
  for (const auto& [column, key] :
       {std::pair("lr_mult", "optim.lr_mult"), std::pair("wd_mult", "optim.wd_mult"),
        std::pair("batch_mult", "optim.batch_mult")}) {
    const std::string text = option(run, key, where);
    if (!text.empty()) row.set(column, number_of(text, where));
  }
}

/// a / b, when both are there and b is not 0.
std::optional<double> ratio(const Json& json,
                            std::string_view a,
                            std::string_view b,
                            const std::string& where) {
  if (find_field(json, a, where) == nullptr || find_field(json, b, where) == nullptr)
    return std::nullopt;
  const double divisor = get_double(json, b, where);
  if (divisor == 0.0) return std::nullopt;
  return get_double(json, a, where) / divisor;
}

void add_summary(LedgerRow& row, const Json& summary, const std::string& where) {
  constexpr double kMib = 1.0 / 0x1p20;
  const Copier from(row, summary, where);
  from.text("finished", "finished");
  from.number("final_train_loss", "final_train_loss");
  from.number("min_val_bpb", "min_val_bpb");
  from.number("peak_mem_mib", "peak_bytes", kMib);
  from.number("planned_mib", "planned_bytes", kMib);
  from.number("peak_resident_mib", "peak_resident_bytes", kMib);
  from.number("process_sec", "process_sec");
  from.number("startup_sec", "startup_sec");
  from.integer("captures", "programs_bound");
  from.number("capture_ms", "bind_ms");
  from.integer("recaptures", "programs_bound_in_steps");
  from.integer("plan_rebuilds", "plans_made_in_steps");
  from.integer("allocs_after_warmup", "blocks_made_in_steps");
  // On cuda a Program becomes a graph, and memory blocks are not all that is allocated.
  from.integer("captures", "graphs_captured");
  from.number("capture_ms", "capture_ms");
  if (row.integer("recaptures").value_or(0) == 0)
    from.integer("recaptures", "graphs_captured_in_steps");
  from.integer("allocs_after_warmup", "device_allocations_in_steps");
  from.integer("graph_breaks", "graph_breaks_in_steps");
  from.number("autotune_ms", "gemm_timing_ms");
  row.set("host_syncs_per_step",
          ratio(summary, "device_syncs_in_steps", "counted_steps_of_process", where));
  row.set("autotune_hit_rate", ratio(summary, "gemm_products_found", "gemm_products", where));
}

/// The first step from which on every step but stalls stays within 5 % of the median; empty when
/// that never happens.
std::optional<int64_t> steady_from(const std::vector<StepRecord>& steps, double median) {
  size_t at = 0, run = 0;
  for (; at < steps.size() && run < 3; ++at) {
    const double dt = 1e-9 * static_cast<double>(steps[at].dt_ns);
    run = std::abs(dt / median - 1.0) <= 0.05 ? run + 1 : 0;
  }
  if (run < 3) return std::nullopt;
  return static_cast<int64_t>(at - 3);
}

void add_steps(LedgerRow& row, const std::vector<StepRecord>& steps) {
  row.set("steps_done", static_cast<int64_t>(steps.size()));
  if (steps.empty()) return;
  std::vector<double> dts;
  int64_t non_finite = 0;
  double largest_norm = 0.0;
  for (const StepRecord& r : steps) {
    if (r.counted()) dts.push_back(1e-9 * static_cast<double>(r.dt_ns));
    if (!std::isfinite(r.loss)) ++non_finite;
    largest_norm = std::max(largest_norm, static_cast<double>(r.grad_norm));
  }
  if (dts.empty()) {
    for (const StepRecord& r : steps) dts.push_back(1e-9 * static_cast<double>(r.dt_ns));
  }
  const double batch = static_cast<double>(steps.back().tokens) / static_cast<double>(steps.size());
  std::vector<double> sorted = dts;
  std::sort(sorted.begin(), sorted.end());
  const double median = median_of(dts);
  double sum = 0.0, stalled = 0.0;
  std::vector<double> off;
  for (const double dt : dts) {
    sum += dt;
    if (dt > 1.5 * median) stalled += dt;
    off.push_back(std::abs(dt - median));
  }
  const size_t window = std::min<size_t>(100, steps.size());
  double late = 0.0;
  for (size_t i = steps.size() - window; i < steps.size(); ++i) late += steps[i].loss;
  const Clocks clocks = clocks_at(steps, static_cast<int64_t>(steps.size()));
  row.set("tok_per_sec_median", batch / median);
  row.set("dt_median_ms", 1e3 * median);
  row.set("dt_p10", 1e3 * quantile(sorted, 0.1));
  row.set("dt_p90", 1e3 * quantile(sorted, 0.9));
  row.set("dt_mad", 1e3 * median_of(off));
  row.set("stall_frac", stalled / sum);
  row.set("throughput_total", batch * static_cast<double>(dts.size()) / sum);
  row.set("wall_time_sec", clocks.nanochat_sec);
  row.set("train_clock_sec", clocks.train_sec);
  row.set("tokens_total", steps.back().tokens);
  row.set("final_train_loss_window", late / static_cast<double>(window));
  row.set("loss_spikes", loss_spikes(steps));
  row.set("nonfinite_steps", non_finite);
  row.set("grad_norm_max", largest_norm);
  row.set("first_step_ms", 1e-6 * static_cast<double>(steps[0].dt_ns));
  row.set("steady_step", steady_from(steps, median));
  if (const auto flops = row.number("flops_per_token"))
    row.set("flops_total", *flops * static_cast<double>(steps.back().tokens));
  if (const auto scaling = row.number("params_scaling"))
    row.set("realized_ratio", static_cast<double>(steps.back().tokens) / *scaling);
}

/// The last evaluation, when it is that of the end. Not from summary.json: a run that was killed
/// after its last checkpoint has no evaluation of its own process in there.
void add_final_evaluation(LedgerRow& row, const std::string& path) {
  if (!holds_something(path)) return;
  const CsvTable table = read_csv(path);
  if (table.rows.empty()) return;
  const std::vector<std::string>& last = table.rows.back();
  if (last[table.column("step")] != row.text("num_iterations")) return;
  for (const auto& [column, field] :
       {std::pair("final_val_bpb", "val_bpb"), std::pair("final_val_loss", "val_loss"),
        std::pair("val_floor", "floor")}) {
    const std::string& text = last[table.column(field)];
    if (!text.empty() && text != "nan") row.set(column, number_of(text, path));
  }
}

/// Why the run has diverged; "" when it has not.
std::string divergence_of(const std::string& run_folder) {
  const std::string path = in(run_folder, "steps.bin");
  if (!fs::exists(path)) return "";
  std::vector<double> validation;
  for (const MeasuredPoint& p : measured_points(run_folder, "val_loss"))
    validation.push_back(p.metric);
  return divergence(read_steps(path), validation);
}

/// T_end beside the crossing: from the end of the run and a prior of how the end falls with the
/// horizon, which is in nats, so for bits per byte in the ratio of the two metrics.
void add_end_horizon(LedgerRow& row, const TargetLock& lock) {
  const auto clock = row.number("train_clock_sec"), loss = row.number("final_val_loss"),
             bpb = row.number("final_val_bpb");
  if (!clock || !loss || (lock.metric == "val_bpb" && !bpb)) return;
  const double last = lock.metric == "val_bpb" ? *bpb : *loss;
  const double t = end_horizon_sec(*clock, last, lock.threshold, kHorizonNats * (last / *loss));
  if (std::isfinite(t)) row.set("ttt_end_horizon_sec", t);
}

}  // namespace

std::vector<MeasuredPoint> measured_points(const std::string& run_folder,
                                           const std::string& metric) {
  const std::string path = in(run_folder, "evals.csv");
  if (!holds_something(path)) return {};
  std::vector<StepRecord> steps;
  if (fs::exists(in(run_folder, "steps.bin"))) steps = read_steps(in(run_folder, "steps.bin"));
  const CsvTable table = read_csv(path);
  const size_t step = table.column("step"), value = table.column(metric),
               process = table.column("process_sec");
  std::vector<MeasuredPoint> points;
  for (const std::vector<std::string>& row : table.rows) {
    MeasuredPoint p{.step = integer_of(row[step], path)};
    if (p.step > static_cast<int64_t>(steps.size())) break;  // its steps were not written any more
    const Clocks clocks = clocks_at(steps, p.step);
    p.metric = row[value] == "nan" ? NAN : number_of(row[value], path);
    p.train_sec = clocks.train_sec;
    p.nanochat_sec = clocks.nanochat_sec;
    p.process_sec = number_of(row[process], path);
    points.push_back(p);
  }
  return points;
}

LedgerRow row_of_run(const std::string& run_folder,
                     const Experiment& experiment,
                     const Cell& cell,
                     int64_t attempt,
                     const TargetLock* lock) {
  LedgerRow row;
  const Arm& arm = experiment.arm(cell.arm);
  row.set("run_id", fs::path(run_folder).filename().string());
  row.set("experiment_name", cell.name);
  row.set("experiment", experiment.name);
  row.set("template", experiment.name);
  row.set("arm", cell.arm);
  row.set("seed", cell.seed);
  row.set("pair_id", fmt::format("{}.s{}", experiment.name, cell.seed));
  row.set("block_id", fmt::format("{}.b{}", experiment.name, cell.block));
  row.set("attempt", attempt);
  row.set("rewrites", arm.flags());
  row.set("config_hash", experiment.config_hash(arm));
  row.set("build_hash", experiment.build_hash);
  row.set("extrapolation_method", "none");

  const std::string run_path = in(run_folder, "run.json");
  add_identity(row, json_of(run_path), run_path);
  if (fs::exists(in(run_folder, "steps.bin")))
    add_steps(row, read_steps(in(run_folder, "steps.bin")));
  if (const auto flops = row.number("flops_per_token"), rate = row.number("tok_per_sec_median");
      flops && rate && experiment.peak_gflops > 0.0)
    row.set("mfu_median", *flops * *rate / (1e9 * experiment.peak_gflops));
  const std::string summary_path = in(run_folder, "summary.json");
  const std::string outcome_path = in(run_folder, "outcome.json");
  const Json summary = json_of(summary_path), outcome = json_of(outcome_path);
  add_summary(row, summary, summary_path);
  add_final_evaluation(row, in(run_folder, "evals.csv"));
  std::string status = get_string(summary, "status", summary_path, "killed");
  std::string detail = summary.empty() ? std::string(kLabEnded) : "";
  if (!outcome.empty()) {
    status = get_string(outcome, "status", outcome_path);
    detail = get_string(outcome, "detail", outcome_path);
  }
  if (status == "ok") {
    if (const std::string why = divergence_of(run_folder); !why.empty()) {
      status = "diverged";
      detail = why;
    }
  }

  if (lock != nullptr) {
    row.set("lock_hash", lock->hash());
    row.set("eval_hash", lock->eval_hash());
    row.set("data_hash", lock->data_sha256);
    row.set("target_metric_name", lock->metric);
    row.set("target_metric_threshold", lock->threshold);
    const Crossing c =
        find_crossing(measured_points(run_folder, lock->metric), lock->threshold, lock->metric_sd);
    if (c.status == Crossing::Status::crossed) {
      row.set("time_to_target_sec_measured", c.train_sec);
      row.set("ttt_lo", c.low_sec);
      row.set("ttt_hi", c.high_sec);
      row.set("ttt_observed_frac", 1.0);
      row.set("ttt_linear_sec", c.linear_sec);
      row.set("ttt_nanochat_sec", c.nanochat_sec);
      row.set("ttt_process_sec", c.process_sec);
      row.set("steps_to_target", c.steps);
      if (const auto batch = row.number("total_batch_size"))
        row.set("tokens_to_target", c.steps * *batch);
    } else if (c.status == Crossing::Status::too_easy && status == "ok") {
      status = "config_error";
      detail = "the first evaluation is at or below the target already: it is too easy";
    }
  }
  if (lock != nullptr && status == "ok") add_end_horizon(row, *lock);
  const std::string check_path = in(run_folder, "resume_check.json");
  if (const Json check = json_of(check_path); !check.empty()) {
    row.set("resume_check", get_string(check, "result", check_path));
    if (status == "ok" && get_string(check, "result", check_path) != "pass") {
      status = "resume_mismatch";
      detail = get_string(check, "detail", check_path);
    }
  }
  row.set("status", status);
  if (!detail.empty()) row.set("detail", detail);
  return row;
}

void write_outcome(const std::string& run_folder, const Outcome& outcome) {
  OrderedJson json;
  json["format"] = 1;
  json["status"] = outcome.status;
  json["detail"] = outcome.detail;
  write_file_atomically(in(run_folder, "outcome.json"), json.dump(1) + "\n");
}

bool has_ended(const std::string& run_folder) {
  if (fs::exists(in(run_folder, "outcome.json"))) return true;
  const std::string path = in(run_folder, "summary.json");
  return holds_something(path) && get_string(json_of(path), "status", path, "") != "killed";
}

}  // namespace tightloop
