#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/build_info.h"
#include "tightloop/core/cuda_device.h"
#include "tightloop/core/json.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/host_info.h"
#include "tightloop/io/toml_config.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/train/gemm_cache.h"
#include "tightloop/train/memory_hint.h"
#include "tightloop/train/timing_state.h"

namespace tightloop::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchFlags {
  std::vector<std::string> ops;  // bench ops: only these
  int64_t steps = 10;
  int64_t vocab = 32768;
  int64_t top = 12;
  std::string compare;
  bool json = false;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double timed(Executable& executable) {
  const Clock::time_point start = Clock::now();
  executable.run();
  executable.wait();
  return seconds_since(start);
}

void stop_if_asked() {
  if (g_stop) throw Error(ErrorKind::interrupted, "interrupted before the bench was done");
}

/// Times of one thing, seconds.
struct Samples {
  std::vector<double> seconds;

  /// Linear between the sorted samples around it; 0 of none.
  double quantile(double share) const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    if (sorted.empty()) return 0.0;
    const double at = share * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
  }
  double median() const { return quantile(0.5); }
  double min() const { return *std::min_element(seconds.begin(), seconds.end()); }
  double max() const { return *std::max_element(seconds.begin(), seconds.end()); }
  /// (max - min) / median: what a figure from this machine is worth.
  double spread() const { return (max() - min()) / median(); }
  OrderedJson json() const {
    return {{"samples", seconds.size()},
            {"median_ms", 1e3 * median()},
            {"p10_ms", 1e3 * quantile(0.1)},
            {"p90_ms", 1e3 * quantile(0.9)},
            {"min_ms", 1e3 * min()},
            {"max_ms", 1e3 * max()},
            {"spread", spread()}};
  }
};

/// Half the width of the 95 % confidence interval of the mean: Student's t times standard error.
double half_interval(const std::vector<double>& x, double mean) {
  static constexpr double kT[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                                  2.262,  2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                                  2.110,  2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
                                  2.060,  2.056, 2.052, 2.048, 2.045, 2.042};
  const size_t freedom = x.size() - 1;
  double squares = 0.0;
  for (double v : x) squares += (v - mean) * (v - mean);
  const double t =
      freedom <= std::size(kT) ? kT[freedom - 1] : 1.96 + 2.5 / static_cast<double>(freedom);
  return t * std::sqrt(squares / static_cast<double>(freedom) / static_cast<double>(x.size()));
}

/// The Programs of a run with the given flags, on random tokens, in memory of their own.
class Rig {
 public:
  /// With `other_rewrites`, a second micro-step over the same slots.
  Rig(const TrainConfig& config,
      const BenchFlags& flags,
      std::optional<std::vector<std::string>> other_rewrites = std::nullopt)
      : config_(config), flags_(flags), other_rewrites_(std::move(other_rewrites)) {
    spec_.model =
        nanochat_from_depth(config.recipe, config.depth, config.aspect_ratio, config.head_dim,
                            config.max_seq_len, flags.vocab, config.window_pattern);
    const int64_t T = config.max_seq_len;
    const int64_t most =
        config.total_batch_size ? std::max<int64_t>(1, *config.total_batch_size / T) : INT64_MAX;
    spec_.batch = std::min(config.device_batch_size, most);
    spec_.rewrites = config.enabled_rewrites();
    spec_.rewrite_options = config.rewrite_options();
    spec_.device = config.device;
    spec_.dtype = config.dtype;
    cuda::set_generic_arch(config.generic_arch);
    cuda::set_debug_sync(config.debug_sync);
    const int64_t tokens = config.total_batch_size.value_or(micro_tokens());
    micro_steps_ = std::max<int64_t>(1, (tokens + micro_tokens() - 1) / micro_tokens());

    std::vector<NamedShape> shapes;
    for (const NanochatParameter& p : nanochat_parameters(spec_.model))
      shapes.push_back({p.name, p.shape});
    const BaseRates rates = default_rates(config.recipe);
    groups_ =
        nanochat_groups(config.recipe, shapes, spec_.model.n_embd, rates, 1.0, rates.weight_decay);
    seed_ = static_cast<uint64_t>(config.seed);
    const Clock::time_point start = Clock::now();
    programs_ = std::make_unique<TrainPrograms>(build_train_programs(spec_, groups_));
    startup_s_ = seconds_since(start);
    if (other_rewrites_) other_ = other_micro_step(*other_rewrites_);
  }

  int64_t micro_tokens() const { return spec_.batch * spec_.sequence(); }
  int64_t micro_steps() const { return micro_steps_; }
  /// For the memory hint. Without a total batch a step is one micro-batch, of any power of two.
  int64_t rows_per_step() const {
    return config_.total_batch_size
               ? *config_.total_batch_size / spec_.sequence()
               : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(spec_.batch)));
  }
  const TrainProgramsSpec& spec() const { return spec_; }
  const TrainPrograms& programs() const { return *programs_; }
  double startup_s() const { return startup_s_; }

  const PlannedProgram& other() const { return *other_; }

  /// Takes memory, and fills every slot with values that are not zero.
  void allocate() {
    const int64_t bytes = planned_bytes(), available = memory_available_on(spec_.device);
    if (bytes > available) {
      const auto planned = [&](int64_t micro_batch, int64_t depth) {
        TrainConfig smaller = config_;
        smaller.device_batch_size = micro_batch;
        smaller.depth = depth;
        return Rig(smaller, flags_, other_rewrites_).planned_bytes();
      };
      throw Error(ErrorKind::oom, fmt::format("the bench needs {}, {} are free",
                                              human_bytes(static_cast<double>(bytes)),
                                              human_bytes(static_cast<double>(available))))
          .with_hint(memory_hint(spec_.batch, rows_per_step(), config_.depth, available, planned));
    }
    if (spec_.device == Device::cuda) gemm_cache_.emplace();
    slots_ = std::make_unique<SlotStore>(programs_->slots, spec_.device);
    workspace_ = std::make_unique<Workspace>(plans());
    fill_for_timing(*programs_, spec_.model, groups_, micro_tokens() * micro_steps_, seed_,
                    *slots_);
  }

  /// After every Program has run: what was chosen for their products stays for later processes.
  void keep_choices() {
    if (gemm_cache_) gemm_cache_->save_if_new();
  }

  Executable bind(const PlannedProgram& p) const {
    return {p.program, p.plan, *slots_, *workspace_};
  }
  double loss() const { return get_element(slots_->pull(kLossSlot), 0); }
  int64_t bytes() const { return slots_->bytes() + workspace_->bytes(); }

 private:
  PlannedProgram other_micro_step(std::vector<std::string> rewrites) const {
    TrainProgramsSpec other = spec_;
    other.rewrites = std::move(rewrites);
    TrainPrograms built = build_train_programs(other, groups_);
    const std::vector<Slot>&mine = programs_->slots->all(), &its = built.slots->all();
    const bool alike = std::equal(mine.begin(), mine.end(), its.begin(), its.end(),
                                  [](const Slot& a, const Slot& b) {
                                    return a.name == b.name && a.type == b.type && a.role == b.role;
                                  });
    TL_CHECK(alike);  // rewrites change ops, never what persists between runs
    return std::move(built.first_micro_step);
  }

  std::vector<const Plan*> plans() const {
    std::vector<const Plan*> plans = programs_->plans();
    if (other_) plans.push_back(&other_->plan);
    return plans;
  }

  int64_t planned_bytes() const {
    int64_t bytes = 0;
    for (const MemoryLine& line : memory_table(*programs_->slots, spec_.device, plans()))
      bytes += line.bytes;
    return bytes;
  }

  const TrainConfig config_;
  const BenchFlags flags_;
  const std::optional<std::vector<std::string>> other_rewrites_;
  TrainProgramsSpec spec_;
  std::vector<ParameterGroup> groups_;
  int64_t micro_steps_ = 1;
  uint64_t seed_ = 0;
  std::unique_ptr<TrainPrograms> programs_;
  std::optional<PlannedProgram> other_;
  double startup_s_ = 0.0;
  std::optional<GemmCache> gemm_cache_;  // on cuda
  std::unique_ptr<SlotStore> slots_;
  std::unique_ptr<Workspace> workspace_;
};

/// What steps on cuda make when they are enqueued one after another, as training does.
struct StepsInARow {
  int64_t steps = 0;
  double seconds = 0.0;  // of all
  int64_t captures = 0, breaks = 0, allocations = 0, syncs = 0;

  OrderedJson json() const {
    return {{"steps", steps},
            {"step_ms", 1e3 * seconds / static_cast<double>(steps)},
            {"graphs_captured", captures},
            {"graph_breaks", breaks},
            {"device_allocations", allocations},
            {"device_syncs", syncs}};
  }
};

template <typename Step>
StepsInARow steps_in_a_row(int64_t steps, const Executable& last, Step&& enqueue_step) {
  StepsInARow row{.steps = steps,
                  .captures = -programs_captured(),
                  .breaks = -graph_breaks(),
                  .allocations = -cuda::allocations(),
                  .syncs = -cuda::synchronizations()};
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < steps; ++i) enqueue_step();
  row.captures += programs_captured();
  row.breaks += graph_breaks();
  row.allocations += cuda::allocations();
  row.syncs += cuda::synchronizations();
  last.wait();
  row.seconds = seconds_since(start);
  return row;
}

// ---- per-op times ----

/// Ops that are counted together: all of one name, or all of one name and shape.
struct OpRow {
  std::string op;
  std::string program;
  std::string shapes;
  int64_t count = 0;  // in one run of the Program
  Cost cost;
  double floor_s = 0.0;
  Samples samples;  // of all `count` together
};

std::string shapes_of(const Program& program, const Op& op) {
  std::string text;
  for (const std::vector<Value>* operands : {&op.inputs, &op.updates}) {
    for (Value v : *operands) {
      if (!v) continue;
      const Type& type = program.type(v);
      text += (text.empty() ? "" : " ") +
              (type.dtype == DType::f32 ? to_string(type.shape) : to_string(type));
    }
  }
  for (const auto& [key, value] : op.attrs.entries()) {
    if (std::holds_alternative<int64_t>(value))
      text += fmt::format(" {}={}", key, to_string(value));
  }
  return text;
}

/// Runs the Program `runs` times with a clock around every op.
void profile(const std::string& name,
             Executable& executable,
             int64_t runs,
             bool by_shape,
             const Ceilings& ceilings,
             std::vector<OpRow>& rows) {
  const Program& program = executable.program();
  std::map<std::string, size_t> row_of;
  std::vector<size_t> row_of_op;
  for (const Op& op : program.ops()) {
    const std::string shapes = by_shape ? shapes_of(program, op) : "";
    const std::string key = fmt::format("{} {}", op.def->name, shapes);
    const auto [it, added] = row_of.emplace(key, rows.size());
    if (added) {
      OpRow row;
      row.op = op.def->name;
      row.program = name;
      row.shapes = shapes;
      rows.push_back(std::move(row));
    }
    OpRow& row = rows[it->second];
    const Cost cost = op.def->alias ? Cost{} : cost_of(*op.def, program.types_of(op), op.attrs);
    ++row.count;
    row.cost += cost;
    row.floor_s += floor_seconds(cost, ceilings);
    row_of_op.push_back(it->second);
  }
  std::vector<double> before(program.ops().size(), 0.0);
  for (int64_t run = 0; run < runs; ++run) {
    stop_if_asked();
    executable.run_profiled();
    std::map<size_t, double> sums;
    for (size_t i = 0; i < before.size(); ++i) {
      const double total = executable.profile()[i].seconds;
      sums[row_of_op[i]] += total - before[i];
      before[i] = total;
    }
    for (const auto& [row, seconds] : sums) rows[row].samples.seconds.push_back(seconds);
  }
}

void sort_rows(std::vector<OpRow>& rows) {
  std::erase_if(rows, [](const OpRow& row) { return row.cost.bytes() + row.cost.flops == 0; });
  std::stable_sort(rows.begin(), rows.end(), [](const OpRow& a, const OpRow& b) {
    return a.samples.median() > b.samples.median();
  });
}

double giga_rate(int64_t amount, double seconds) {
  return 1e-9 * static_cast<double>(amount) / seconds;
}

void show_rows(const std::vector<OpRow>& rows, size_t most) {
  double total = 0.0;
  size_t width = 2;
  for (const OpRow& row : rows) {
    total += row.samples.median();
    width = std::max(width, row.op.size());
  }
  const bool shapes = !rows.empty() && !rows[0].shapes.empty();
  out(fmt::format("  {:<{}}  {:<10}  {:>5}  {:>9}  {:>6}  {:>7}  {:>7}  {:>7}{}\n", "op", width,
                  "program", "count", "ms", "share", "GFLOP/s", "GB/s", "% floor",
                  shapes ? "  operands" : ""));
  for (size_t i = 0; i < std::min(most, rows.size()); ++i) {
    const OpRow& row = rows[i];
    const double s = row.samples.median();
    out(fmt::format(
        "  {:<{}}  {:<10}  {:>5}  {:>9.3f}  {:>5.1f}%  {:>7.1f}  {:>7.1f}  {:>6.0f}%{}\n", row.op,
        width, row.program, row.count, 1e3 * s, 100.0 * s / total, giga_rate(row.cost.flops, s),
        giga_rate(row.cost.bytes(), s), 100.0 * row.floor_s / s, shapes ? "  " + row.shapes : ""));
  }
  if (rows.size() > most) {
    double rest = 0.0;
    for (size_t i = most; i < rows.size(); ++i) rest += rows[i].samples.median();
    out(fmt::format("  {:<{}}  {:<10}  {:>5}  {:>9.3f}  {:>5.1f}%\n",
                    fmt::format("{} others", rows.size() - most), width, "", "", 1e3 * rest,
                    100.0 * rest / total));
  }
}

// ---- records ----

/// Runnable tasks of the last minute, on all cores; the bench's own threads count too.
double load_average() {
  double load = 0.0;
  return ::getloadavg(&load, 1) == 1 ? load : 0.0;
}

/// What every JSON line starts with: enough to know what a figure was measured on.
OrderedJson record(std::string_view event, const Rig& rig) {
  OrderedJson json;
  json["v"] = 1;
  json["event"] = event;
  json["time"] = utc_timestamp();
  json["commit"] = build_info().commit;
  json["compiler"] = build_info().compiler;
  json["device"] = name_of(rig.spec().device);
  json["dtype"] = name_of(rig.spec().dtype);
  if (rig.spec().device == Device::cuda) json["gpu"] = cuda::device_info().name;
  json["cpu"] = host_info().cpu_model;
  json["kernel"] = gemm_kernel_name();
  json["threads"] = thread_count();
  json["load"] = load_average();
  const NanochatConfig& m = rig.spec().model;
  json["model"] = {{"depth", m.n_layer},
                   {"width", m.n_embd},
                   {"vocab", m.vocab_size},
                   {"sequence", m.sequence_len},
                   {"micro_batch", rig.spec().batch},
                   {"rewrites", rig.spec().rewrites}};
  return json;
}

void print_rows_json(const std::vector<OpRow>& rows, const Rig& rig) {
  for (const OpRow& row : rows) {
    OrderedJson line = record("op", rig);
    const double s = row.samples.median();
    line["op"] = row.op;
    line["program"] = row.program;
    if (!row.shapes.empty()) line["operands"] = row.shapes;
    line["count"] = row.count;
    line.update(row.samples.json());
    line["flops"] = row.cost.flops;
    line["bytes"] = row.cost.bytes();
    line["gflops"] = giga_rate(row.cost.flops, s);
    line["gbs"] = giga_rate(row.cost.bytes(), s);
    line["floor_ms"] = 1e3 * row.floor_s;
    line["share_of_floor"] = row.floor_s / s;
    out(line.dump() + "\n");
  }
}

void progress(std::string_view what, int64_t i, int64_t n) {
  if (stderr_is_terminal()) talk(fmt::format("\r\033[K{} {}/{}{}", what, i, n, i == n ? "\n" : ""));
}

void show_setting(const Rig& rig, const Ceilings& c) {
  const NanochatConfig& m = rig.spec().model;
  out(fmt::format(
      "model     {} layers, width {}, vocabulary {}, {} parameters; {} x {} tokens a "
      "micro-step\n",
      m.n_layer, m.n_embd, m.vocab_size, human(static_cast<double>(nanochat_sizes(m).parameters)),
      rig.spec().batch, rig.spec().sequence()));
  out(fmt::format(
      "machine   {}, {} threads, {} kernel; ceilings {:.1f} GFLOP/s, read {:.1f} GB/s\n",
      host_info().cpu_model, thread_count(), gemm_kernel_name(), c.fma_gflops, c.read_gbs));
  out(fmt::format("rewrites  {}\n", rig.spec().rewrites.empty()
                                        ? "none"
                                        : fmt::format("{}", joined(rig.spec().rewrites, " "))));
  out(fmt::format("startup   {:.1f} ms to build, differentiate, rewrite and plan; {} of memory\n",
                  1e3 * rig.startup_s(), human_bytes(static_cast<double>(rig.bytes()))));
  if (const double load = load_average(); load > 1.5 * thread_count())
    talk(
        fmt::format("note: other programs are running (load {:.1f} on {} threads): times vary and "
                    "ceilings come out too low\n",
                    load, thread_count()));
}

// ---- the three benches ----

int bench_steps(const TrainConfig& config, const BenchFlags& flags) {
  Rig rig(config, flags);
  rig.allocate();
  const Ceilings ceilings = measure_ceilings(0.5, config.device, config.dtype);
  Executable first = rig.bind(rig.programs().first_micro_step);
  Executable later = rig.bind(rig.programs().next_micro_step);
  Executable optimizer = rig.bind(rig.programs().optimizer);
  const bool has_later = rig.micro_steps() > 1;

  const double first_step_s = timed(first) + (has_later ? timed(later) : 0.0) + timed(optimizer);
  rig.keep_choices();
  Samples micro, next, update, step;
  const auto later_count = static_cast<double>(rig.micro_steps() - 1);
  for (int64_t i = 0; i < flags.steps; ++i) {
    stop_if_asked();
    micro.seconds.push_back(timed(first));
    if (has_later) next.seconds.push_back(timed(later));
    update.seconds.push_back(timed(optimizer));
    step.seconds.push_back(micro.seconds.back() + update.seconds.back() +
                           (has_later ? later_count * next.seconds.back() : 0.0));
    progress("step", i + 1, flags.steps);
  }
  std::optional<StepsInARow> in_a_row;
  if (config.device == Device::cuda) {
    in_a_row = steps_in_a_row(std::min<int64_t>(flags.steps, 3), optimizer, [&] {
      first.run();
      for (int64_t m = 1; m < rig.micro_steps(); ++m) later.run();
      optimizer.run();
    });
  }
  if (!std::isfinite(rig.loss()))
    fail(ErrorKind::numeric, "the loss became {}: the times mean nothing", rig.loss());
  std::vector<OpRow> rows;
  const int64_t runs = std::min<int64_t>(flags.steps, 3);
  profile("micro-step", first, runs, false, ceilings, rows);
  profile("optimizer", optimizer, runs, false, ceilings, rows);
  sort_rows(rows);

  const auto tokens = static_cast<double>(rig.micro_tokens());
  const auto flops = static_cast<double>(nanochat_sizes(rig.spec().model).flops_per_token);
  const double tokens_per_s = tokens * static_cast<double>(rig.micro_steps()) / step.median();
  const double micro_gflops = 1e-9 * flops * tokens / micro.median();
  const double step_gflops = 1e-9 * flops * tokens_per_s;

  if (flags.json) {
    OrderedJson line = record("train", rig);
    line["startup_ms"] = 1e3 * rig.startup_s();
    line["memory_bytes"] = rig.bytes();
    line["first_step_ms"] = 1e3 * first_step_s;
    if (in_a_row) {
      line["graphs_captured"] = programs_captured();
      line["capture_ms"] = 1e3 * capture_seconds();
      line["gemm_products_timed"] = gemm_choices_timed();
      line["gemm_timing_ms"] = 1e3 * gemm_timing_seconds();
      line["in_a_row"] = in_a_row->json();
    }
    line["micro_steps"] = rig.micro_steps();
    line["micro_step"] = micro.json();
    if (has_later) line["later_micro_step"] = next.json();
    line["optimizer"] = update.json();
    line["step"] = step.json();
    line["tok_per_sec"] = tokens_per_s;
    line["flops_per_token"] = flops;
    line["micro_step_gflops"] = micro_gflops;
    line["step_gflops"] = step_gflops;
    line["fma_gflops"] = ceilings.fma_gflops;
    line["read_gbs"] = ceilings.read_gbs;
    line["share_of_peak"] = step_gflops / ceilings.fma_gflops;
    out(line.dump() + "\n");
    print_rows_json(rows, rig);
    return kDone;
  }
  show_setting(rig, ceilings);
  out(fmt::format("first     {:.1f} ms (first run of each Program)\n", 1e3 * first_step_s));
  if (in_a_row) {
    out(fmt::format("graphs    {} captured in {:.1f} ms; {} products timed in {:.1f} ms\n",
                    programs_captured(), 1e3 * capture_seconds(), gemm_choices_timed(),
                    1e3 * gemm_timing_seconds()));
    out(
        fmt::format("in a row  {:.2f} ms a step of {}; made on the way: {} graphs, {} graph "
                    "breaks, {} allocations, {} waits\n",
                    1e3 * in_a_row->seconds / static_cast<double>(in_a_row->steps), in_a_row->steps,
                    in_a_row->captures, in_a_row->breaks, in_a_row->allocations, in_a_row->syncs));
  }
  out("\n");
  out(fmt::format("  {:<20}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>6}   ({} samples)\n", "ms",
                  "median", "p10", "p90", "min", "max", "spread", flags.steps));
  const auto row = [](std::string_view name, const Samples& s) {
    out(fmt::format("  {:<20}  {:>9.2f}  {:>9.2f}  {:>9.2f}  {:>9.2f}  {:>9.2f}  {:>5.1f}%\n", name,
                    1e3 * s.median(), 1e3 * s.quantile(0.1), 1e3 * s.quantile(0.9), 1e3 * s.min(),
                    1e3 * s.max(), 100.0 * s.spread()));
  };
  row("forward + backward", micro);
  if (has_later) row("  later micro-steps", next);
  row("optimizer", update);
  row(fmt::format("step of {}", rig.micro_tokens() * rig.micro_steps()), step);
  out(
      fmt::format("\n{:.1f} tok/s, {:.1f} model GFLOP/s, {:.1f}% of the FMA peak; forward + "
                  "backward alone {:.1f} GFLOP/s, {:.1f}%\n\n",
                  tokens_per_s, step_gflops, 100.0 * step_gflops / ceilings.fma_gflops,
                  micro_gflops, 100.0 * micro_gflops / ceilings.fma_gflops));
  show_rows(rows, static_cast<size_t>(flags.top));
  return kDone;
}

int bench_compare(const TrainConfig& config, const BenchFlags& flags) {
  std::vector<std::string> names;
  for (const Rewrite& rewrite : all_rewrites()) names.emplace_back(rewrite.name);
  if (std::find(names.begin(), names.end(), flags.compare) == names.end())
    throw Error(ErrorKind::usage, fmt::format("--compare: unknown rewrite '{}'", flags.compare))
        .with_hint(fmt::format("one of: {}", joined(names, ", ")));
  if (flags.steps < 2) fail(ErrorKind::usage, "--compare needs --steps 2 or more");
  TrainConfig with = config;
  with.rewrites[flags.compare] = true;
  std::vector<std::string> others = with.enabled_rewrites();
  std::erase(others, flags.compare);
  Rig rig(with, flags, std::move(others));
  for (const RewriteReport& r : rig.programs().first_micro_step.reports) {
    if (r.name == flags.compare && r.applied.empty())
      fail(ErrorKind::usage, "--compare: {} changes nothing here: {}", r.name,
           r.not_applied.empty() ? "no site" : r.not_applied[0]);
  }
  const PlannedProgram& plain = rig.other();
  rig.allocate();
  Executable a = rig.bind(rig.programs().first_micro_step), b = rig.bind(plain);
  timed(a);
  const double loss_a = rig.loss();
  timed(b);
  const double loss_b = rig.loss();
  rig.keep_choices();

  Samples on, off;
  std::vector<double> logs;  // of one A B B A each: drift that is linear in time cancels
  for (int64_t i = 0; i < flags.steps; ++i) {
    stop_if_asked();
    const double a1 = timed(a), b1 = timed(b), b2 = timed(b), a2 = timed(a);
    on.seconds.insert(on.seconds.end(), {a1, a2});
    off.seconds.insert(off.seconds.end(), {b1, b2});
    logs.push_back(std::log((a1 + a2) / (b1 + b2)));
    progress("A B B A", i + 1, flags.steps);
  }
  double mean = 0.0;
  for (double x : logs) mean += x / static_cast<double>(logs.size());
  const double half = half_interval(logs, mean);
  const double ratio = std::exp(mean), low = std::exp(mean - half), high = std::exp(mean + half);
  const int64_t arena_a = rig.programs().first_micro_step.plan.arena_bytes;

  if (flags.json) {
    OrderedJson line = record("compare", rig);
    line["rewrite"] = flags.compare;
    line["blocks"] = flags.steps;
    line["with"] = on.json();
    line["without"] = off.json();
    line["ratio"] = ratio;
    line["ratio_low"] = low;
    line["ratio_high"] = high;
    line["loss_with"] = loss_a;
    line["loss_without"] = loss_b;
    line["arena_bytes_with"] = arena_a;
    line["arena_bytes_without"] = plain.plan.arena_bytes;
    out(line.dump() + "\n");
    return kDone;
  }
  out(fmt::format("forward + backward with and without --{}, {} blocks of A B B A, {} threads\n",
                  flags.compare, flags.steps, thread_count()));
  const auto row = [&](std::string_view name, const Samples& s, double loss, int64_t arena) {
    out(fmt::format(
        "  {:<8} median {:.2f} ms  min {:.2f}  max {:.2f}  spread {:.1f}%  loss {:.6f}  "
        "activations {}\n",
        name, 1e3 * s.median(), 1e3 * s.min(), 1e3 * s.max(), 100.0 * s.spread(), loss,
        human_bytes(static_cast<double>(arena))));
  };
  row("with", on, loss_a, arena_a);
  row("without", off, loss_b, plain.plan.arena_bytes);
  out(fmt::format("time with / without: {:.4f}, 95% interval {:.4f} to {:.4f}: {}\n", ratio, low,
                  high,
                  high < 1.0  ? "faster with"
                  : low > 1.0 ? "slower with"
                              : "no difference shown"));
  return kDone;
}

/// Error{usage} when one of `wanted` is no op of the training step.
void expect_ops(const TrainPrograms& programs, const std::vector<std::string>& wanted) {
  std::vector<std::string> known;
  for (const PlannedProgram* p : {&programs.first_micro_step, &programs.optimizer})
    for (const Op& op : p->program.ops()) known.emplace_back(op.def->name);
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  for (const std::string& op : wanted) {
    if (std::find(known.begin(), known.end(), op) != known.end()) continue;
    const std::string near = nearest_name(op, known);
    throw Error(ErrorKind::usage, fmt::format("no op '{}' in a training step", op))
        .with_hint(near.empty() ? fmt::format("one of: {}", joined(known, ", "))
                                : fmt::format("did you mean '{}'?", near));
  }
}

int bench_ops(const TrainConfig& config, const BenchFlags& flags) {
  Rig rig(config, flags);
  expect_ops(rig.programs(), flags.ops);
  rig.allocate();
  const Ceilings ceilings = measure_ceilings(0.5, config.device, config.dtype);
  Executable micro = rig.bind(rig.programs().first_micro_step);
  Executable optimizer = rig.bind(rig.programs().optimizer);
  timed(micro);
  timed(optimizer);
  rig.keep_choices();
  std::vector<OpRow> rows;
  profile("micro-step", micro, flags.steps, true, ceilings, rows);
  profile("optimizer", optimizer, flags.steps, true, ceilings, rows);
  sort_rows(rows);
  if (!flags.ops.empty()) {
    std::erase_if(rows, [&](const OpRow& row) {
      return std::find(flags.ops.begin(), flags.ops.end(), row.op) == flags.ops.end();
    });
  }
  if (flags.json) {
    print_rows_json(rows, rig);
    return kDone;
  }
  show_setting(rig, ceilings);
  out(fmt::format("\nmedians of {} runs; ms of all calls of a row in one run\n", flags.steps));
  show_rows(rows, rows.size());
  return kDone;
}

/// Whether an option of `train` changes what is timed. The rest is of data, evaluations,
/// checkpoints and run folders, and values of hyperparameters.
bool bench_uses(const OptionSpec& spec) {
  if (spec.group == "Model" || spec.group == "Rewrites") return true;
  for (const char* flag : {"device-batch-size", "total-batch-size", "seed", "device", "dtype",
                           "arch", "debug-sync", "threads"}) {
    if (spec.flag == flag) return true;
  }
  return false;
}

/// Error{usage} when a flag or --set has no effect here. Presets and files may have such settings.
void refuse_unused(const TrainFlags& train, std::string_view command) {
  std::vector<std::string> given;
  for (const auto& [flag, value] : train.sources.flags) given.push_back(flag);
  for (const std::string& setting : train.sources.settings)
    given.push_back(parse_setting(setting).key);
  for (const std::string& name : given) {
    const OptionSpec* spec = train.options.find(name);
    if (spec == nullptr || bench_uses(*spec)) continue;
    throw Error(ErrorKind::usage,
                fmt::format("--{} is not for `{}`: it changes nothing there", spec->flag, command))
        .with_hint(fmt::format("leave it out; `{} --help` lists what is timed", command));
  }
}

int run_bench(TrainFlags& train, const BenchFlags& flags, bool ops) {
  refuse_unused(train, ops ? "tightloop bench ops" : "tightloop bench train");
  train.resolve();
  const TrainConfig& config = train.config;
  if (flags.steps < 1) fail(ErrorKind::usage, "--steps {} must be at least 1", flags.steps);
  if (flags.vocab < 2) fail(ErrorKind::usage, "--vocab {} must be at least 2", flags.vocab);
  if (flags.top < 1) fail(ErrorKind::usage, "--top {} must be at least 1", flags.top);
  if (config.threads) set_thread_count(static_cast<int>(*config.threads));
  if (ops) return bench_ops(config, flags);
  return flags.compare.empty() ? bench_steps(config, flags) : bench_compare(config, flags);
}

void add_shared(CLI::App& command,
                const TrainFlags& train,
                BenchFlags& flags,
                std::string_view example) {
  for (const OptionSpec& spec : train.options.all()) {
    if (!bench_uses(spec)) command.get_option("--" + spec.flag)->group("");
  }
  command.add_option("--steps", flags.steps, "timed repetitions [10]");
  command.add_option("--vocab", flags.vocab, "vocabulary of the random tokens [32768]");
  command.add_flag("--json", flags.json, "JSON lines on stdout, one per figure");
  command.footer(
      fmt::format("Example: {}\n"
                  "Needs no data: random tokens, random parameters. Switches have a "
                  "--no- form. Settings: TOML file < --set < flag.",
                  example));
  command.allow_extras();
}

}  // namespace

void add_bench(CLI::App& app, Runner& runner) {
  auto* bench = app.add_subcommand("bench", "how fast training steps and operations run here");

  auto* train = bench->add_subcommand("train", "time whole steps: forward, backward, optimizer");
  auto train_flags = std::make_shared<TrainFlags>(*train);
  auto flags = std::make_shared<BenchFlags>();
  add_shared(*train, *train_flags, *flags,
             "tightloop bench train --depth 12 --max-seq-len 1024 --device-batch-size 1 "
             "--steps 5");
  train->add_option("--top", flags->top, "rows in the table of ops [12]");
  train
      ->add_option("--compare", flags->compare,
                   "a rewrite: time forward + backward with and without it, interleaved A B B A")
      ->type_name("NAME");
  train->callback([train_flags, flags, &runner] {
    runner = [train_flags, flags] { return run_bench(*train_flags, *flags, false); };
  });

  auto* ops = bench->add_subcommand("ops", "time every operation of a training step, by shape");
  auto ops_train_flags = std::make_shared<TrainFlags>(*ops);
  auto ops_flags = std::make_shared<BenchFlags>();
  ops->add_option("op", ops_flags->ops, "only these operations")->type_name("OP");
  add_shared(*ops, *ops_train_flags, *ops_flags,
             "tightloop bench ops linear --depth 12 --max-seq-len 1024 --device-batch-size 1");
  ops->callback([ops_train_flags, ops_flags, &runner] {
    runner = [ops_train_flags, ops_flags] { return run_bench(*ops_train_flags, *ops_flags, true); };
  });
}

}  // namespace tightloop::cli
