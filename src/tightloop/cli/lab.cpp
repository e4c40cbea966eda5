#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/host_info.h"
#include "tightloop/lab/experiment.h"
#include "tightloop/lab/report_data.h"
#include "tightloop/lab/results_table.h"
#include "tightloop/lab/run_row.h"
#include "tightloop/lab/verdict.h"
#include "tightloop/train/trainer.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kExpectedEfficiency = 0.3;  // of the peak, before anything was measured
constexpr double kExpectedStartup = 0.5;     // seconds

struct LabFlags {
  std::string lab_dir;
  std::string program = "/proc/self/exe";
  std::string seeds = "1,2";
  double silence_s = 600.0;
  int profile_rounds = 5;
  bool dry_run = false;
  bool verify_resume = false;
  bool require_verdict = false;
  bool json = false;
};

/// "1,2,7" or "1..10".
std::vector<int64_t> parse_seeds(const std::string& text) {
  std::vector<int64_t> seeds;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    const size_t dots = part.find("..");
    const int64_t first = parse_integer(part.substr(0, dots));
    const int64_t last = dots == std::string::npos ? first : parse_integer(part.substr(dots + 2));
    if (first < 0 || last < first || last - first > 10000)
      fail(ErrorKind::usage, "--seeds '{}': '{}' is no seed or range", text, part);
    for (int64_t s = first; s <= last; ++s) seeds.push_back(s);
    at = end + 1;
  }
  std::vector<int64_t> sorted = seeds;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    fail(ErrorKind::usage, "--seeds '{}': a seed is there twice", text);
  return seeds;
}

/// The folder a reading command means: the one given, else the newest below lab/.
std::string find_lab(const std::string& given) {
  if (!given.empty()) return given;
  std::string newest;
  fs::file_time_type time{};
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("lab", ignored)) {
    const fs::path experiments = entry.path() / "experiments";
    if (!fs::is_directory(experiments)) continue;
    if (newest.empty() || fs::last_write_time(experiments) > time) {
      newest = entry.path().string();
      time = fs::last_write_time(experiments);
    }
  }
  if (newest.empty())
    throw Error(ErrorKind::usage, "there is no lab folder below ./lab")
        .with_hint("`tightloop lab run G --preset quick-lab` makes one, or name yours");
  return newest;
}

/// Seconds of a cell: from runs of this experiment when there are any, else from FLOPs.
struct Prediction {
  double cell_s = 0.0;
  std::string how;
};
Prediction predict(const TrainPlan& plan,
                   const EvalWindow& window,
                   int64_t eval_every,
                   const std::vector<LedgerRow>& rows) {
  const double steps = static_cast<double>(plan.transfer.steps);
  std::vector<double> measured;
  for (const LedgerRow& row : rows) {
    if (row.text("status") == "ok" && row.number("flops_per_token") &&
        *row.number("flops_per_token") == static_cast<double>(plan.sizes.flops_per_token) &&
        row.integer("total_batch_size") == plan.transfer.batch)
      measured.push_back(1e-3 * row.number("dt_median_ms").value_or(0.0));
  }
  Prediction p;
  double dt = 0.0;
  if (!measured.empty()) {
    dt = median_of(measured);
    p.how = fmt::format("from {} finished runs", measured.size());
  } else {
    const Ceilings ceilings = measure_ceilings(0.4);
    dt = static_cast<double>(plan.sizes.flops_per_token * plan.transfer.batch) /
         (1e9 * ceilings.fma_gflops * kExpectedEfficiency);
    p.how = fmt::format("a guess: {:.0f} % of the {:.0f} GFLOP/s measured here",
                        100 * kExpectedEfficiency, ceilings.fma_gflops);
  }
  int64_t evaluations = 0;
  for (int64_t s = 0; s <= plan.transfer.steps; ++s) {
    if (window.due(s) || (eval_every > 0 && (s % eval_every == 0 || s == plan.transfer.steps)))
      ++evaluations;
  }
  const double evaluation = dt / static_cast<double>(plan.transfer.batch) / 3.0 * plan.eval_tokens;
  p.cell_s = kExpectedStartup + steps * dt + static_cast<double>(evaluations) * evaluation;
  return p;
}

/// One rewritten line on a terminal, one line a cell in a pipe.
class LabView : public LabObserver {
 public:
  LabView(double expected_cell_s) : expected_s_(expected_cell_s) {}

  void on_cell(const Cell& cell, int64_t index, int64_t cells, bool resumed) override {
    index_ = index;
    cells_ = cells;
    started_ = Clock::now();
    if (!terminal_)
      talk(fmt::format("cell {}/{}  {}{}\n", index + 1, cells, cell.name,
                       resumed ? "  (continued)" : ""));
  }

  void on_step(const Cell& cell, int64_t step, int64_t steps, double loss) override {
    const auto now = Clock::now();
    if (!terminal_ || std::chrono::duration<double>(now - shown_).count() < 0.1) return;
    shown_ = now;
    const double spent = seconds(started_);
    const double share = static_cast<double>(step) / static_cast<double>(steps);
    const double cell_left = std::max(expected_s_ * (1.0 - share), spent / share - spent);
    const double left = cell_left + expected_s_ * static_cast<double>(cells_ - index_ - 1);
    talk(fmt::format("\r\033[Kcell {}/{}  {:<22} step {:>5}/{}  {:3.0f}%  loss {:.3f}  eta {}",
                     index_ + 1, cells_, cell.name, step, steps, 100 * share, loss,
                     duration(left)));
    open_line_ = true;
  }

  void on_row(const Cell& cell, const LedgerRow& row) override {
    const double took = seconds(started_);
    if (row.text("status") == "ok" && started_ != Clock::time_point{}) {
      finished_s_.push_back(took);
      expected_s_ = median_of(finished_s_);
    }
    if (open_line_) talk("\r\033[K");
    open_line_ = false;
    const auto time = row.number("time_to_target_sec_measured");
    std::string text = fmt::format("{:<26} {:<9}", cell.name, row.text("status"));
    if (row.text("status") == "ok") {
      text += time ? fmt::format(" target after {:.2f} s, {:.1f} steps", *time,
                                 row.number("steps_to_target").value_or(0.0))
                   : std::string(" target not reached");
      text += fmt::format("  {:>6} tok/s  step {:.2f} ms",
                          human(row.number("tok_per_sec_median").value_or(0.0)),
                          row.number("dt_median_ms").value_or(0.0));
    } else {
      text += " " + row.text("detail");
    }
    const double left = expected_s_ * static_cast<double>(cells_ - index_ - 1);
    talk(fmt::format("{}  eta {}\n", text, duration(left)));
  }

  void close() {
    if (open_line_) talk("\n");
    open_line_ = false;
  }

 private:
  static double seconds(Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  }

  bool terminal_ = stderr_is_terminal();
  bool open_line_ = false;
  double expected_s_;
  std::vector<double> finished_s_;
  int64_t index_ = 0, cells_ = 0;
  Clock::time_point started_{}, shown_{};
};

// ---- the result ----

std::string final_table(const Experiment& experiment,
                        const std::vector<LedgerRow>& rows,
                        const TargetLock& lock,
                        const std::vector<ArmVerdict>& verdicts) {
  const auto cells = summary_cells(experiment, rows, lock, verdicts);
  std::vector<size_t> widths(cells[0].size());
  for (const auto& row : cells) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text =
      fmt::format("target: {} <= {:.4f} ({})\n\n", lock.metric, lock.threshold, lock.method);
  for (const auto& row : cells) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const bool left = i == 0 || i + 1 == row.size();
      line += (i == 0 ? "" : "  ") + (left ? fmt::format("{:<{}}", row[i], widths[i])
                                           : fmt::format("{:>{}}", row[i], widths[i]));
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

struct ReportFlags : LabFlags {
  std::string experiment;
  std::string html;  // empty: report-<experiment>.html in the lab folder
  std::string svg_folder, png_folder;
  bool text = false;
};

/// Profiles the arms, writes the report; returns its path.
std::string write_report(const LabFolder& lab,
                         const Experiment& experiment,
                         const ReportFlags& flags) {
  const ReportData data = report_data(lab, experiment, flags.profile_rounds, [] {
    if (g_stop.load()) fail(ErrorKind::interrupted, "interrupted while profiling");
  });
  const std::string path =
      flags.html.empty() ? lab.file("report-" + experiment.name + ".html") : flags.html;
  write_file_atomically(path, render_html(data));
  for (const auto& [panel, name] :
       {std::pair(Panel::roofline, "roofline"), std::pair(Panel::quality, "quality")}) {
    const std::string file = fmt::format("{}-{}", experiment.name, name);
    if (!flags.svg_folder.empty()) {
      make_directories(flags.svg_folder);
      write_file_atomically((fs::path(flags.svg_folder) / (file + ".svg")).string(),
                            panel_svg(data, panel));
    }
    if (!flags.png_folder.empty()) {
      make_directories(flags.png_folder);
      write_png(panel_svg(data, panel), (fs::path(flags.png_folder) / (file + ".png")).string());
    }
  }
  if (flags.text) out(render_text(data));
  return path;
}

/// Judges, keeps decisions/<name>.json, prints. Returns the exit code.
int show_result(LabFolder& lab, const Experiment& experiment, const LabFlags& flags) {
  const TargetLock lock = lab.lock();
  const std::vector<LedgerRow> rows = lab.ledger().rows();
  const std::vector<ArmVerdict> verdicts =
      judge(rows, experiment.name, arm_names(experiment), lock);
  const std::string table = final_table(experiment, rows, lock, verdicts);
  const std::string note = target_note(lab, experiment, rows, lock);
  OrderedJson decision;
  decision["v"] = 1;
  decision["experiment"] = experiment.name;
  decision["lab_dir"] = lab.path();
  decision["metric"] = lock.metric;
  decision["threshold"] = lock.threshold;
  decision["lock_hash"] = lock.hash();
  decision["seeds"] = experiment.seeds;
  OrderedJson judged = OrderedJson::array();
  bool undecided = false;
  for (const ArmVerdict& v : verdicts) {
    judged.push_back(to_json(v));
    undecided = undecided || v.answer == Answer::inconclusive;
  }
  decision["headline"] = headline(verdicts, experiment.name);
  if (!note.empty()) decision["target_note"] = note;
  decision["verdicts"] = judged;
  decision["table"] = table;
  write_file_atomically(lab.file("decisions/" + experiment.name + ".json"),
                        decision.dump(1) + "\n");
  if (flags.json) {
    out(decision.dump() + "\n");
  } else {
    out("\n" + table + "\n");
    out(headline(verdicts, experiment.name) + "\n\n");
    for (const ArmVerdict& v : verdicts)
      out(fmt::format("{}: {}. {}\n\n", v.arm, verdict_word(v), v.text));
    if (!note.empty()) out(note + "\n\n");
  }
  ReportFlags report_flags;
  report_flags.profile_rounds = flags.profile_rounds;
  const std::string report = write_report(lab, experiment, report_flags);
  if (!flags.json) out(fmt::format("report: {}\n", report));
  return flags.require_verdict && undecided ? kJudgedFailed : kDone;
}

/// Runs what is left of an experiment and shows the result.
int run_and_show(LabFolder& lab,
                 const Experiment& experiment,
                 const LabFlags& flags,
                 double expected_cell_s) {
  LabView view(expected_cell_s);
  const RunCellsResult done = run_cells(lab, experiment, flags.program, view, g_stop);
  view.close();
  if (done.interrupted) {
    talk(fmt::format("interrupted; next: `tightloop lab resume {}`\n", lab.path()));
    return kInterrupted;
  }
  const int code = experiment.lock_hash.empty() ? kDone : show_result(lab, experiment, flags);
  if (done.broken > 0) {
    talk(fmt::format("{} of {} cells failed: `tightloop lab status {}`\n", done.broken,
                     experiment.cells().size(), lab.path()));
    return kJudgedFailed;
  }
  return code;
}

// ---- lab run ----

struct RunFlags : LabFlags {
  std::string template_name;
  std::string command;
};

/// The target of a folder: there already, or shipped with the preset. Not saved here.
TargetLock lock_for(const std::string& lab_dir,
                    const std::string& preset,
                    const ValidationData& validation) {
  const std::string path = (fs::path(lab_dir) / "lock/target.json").string();
  if (fs::exists(path)) {
    const TargetLock lock = load_lock(path);
    if (lock.data_sha256 != validation.data_sha256 ||
        lock.tokenizer_sha256 != validation.tokenizer_sha256 ||
        lock.eval_tokens != validation.tokens)
      throw Error(ErrorKind::usage,
                  fmt::format("the target of '{}' was locked on other validation data, another "
                              "tokenizer or another --eval-tokens ({} then, {} now)",
                              lab_dir, lock.eval_tokens, validation.tokens))
          .with_hint("use the data and --eval-tokens of the lock, or another --lab-dir");
    return lock;
  }
  const ShippedLock* shipped = shipped_lock(preset);
  if (shipped == nullptr)
    throw Error(ErrorKind::usage, fmt::format("'{}' has no target to measure the time to", lab_dir))
        .with_hint(fmt::format(
            "derive one from baseline runs, with the same model and data flags: `tightloop lab "
            "lock --lab-dir {} ...`",
            lab_dir));
  if (!validation.floor)
    throw Error(ErrorKind::usage,
                fmt::format("the target of preset {} is a distance to the floor, and this data has "
                            "no known floor",
                            preset))
        .with_hint("leave --data out, or derive a target: `tightloop lab lock`");
  TargetLock lock;
  lock.metric = "val_loss";
  lock.threshold = *validation.floor + shipped->offset;
  lock.eval_tokens = validation.tokens;
  lock.data_sha256 = validation.data_sha256;
  lock.tokenizer_sha256 = validation.tokenizer_sha256;
  lock.floor = validation.floor;
  lock.metric_sd = shipped->metric_sd;
  lock.metric_sd_df = shipped->metric_sd_df;
  lock.crossing_progress = shipped->crossing_progress;
  lock.method = fmt::format("floor {:.4f} + {} nats, shipped with preset {}", *validation.floor,
                            shipped->offset, preset);
  lock.created = utc_timestamp();
  return lock;
}

std::string default_folder(const LabFlags& flags, const std::string& preset) {
  if (!flags.lab_dir.empty()) return flags.lab_dir;
  return "lab/" + (preset.empty() ? std::string("main") : preset);
}

Experiment plan_experiment(TrainFlags& train, const RunFlags& flags, const TrainPlan& plan) {
  std::vector<std::string> notes;
  Experiment e;
  e.name = flags.template_name;
  e.command = flags.command;
  e.arms = template_arms(flags.template_name, train.config, train.options);
  e.seeds = parse_seeds(flags.seeds);
  e.base = base_flags(train.options, flags.template_name, notes);
  e.steps = plan.transfer.steps;
  e.build_hash = build_hash();
  e.verify_resume = flags.verify_resume;
  e.silence_s = flags.silence_s;
  if (e.name != "lock") {
    for (const std::string& note : notes) talk("note: " + note + "\n");
  }
  return e;
}

void show_plan(const Experiment& e,
               const TrainPlan& plan,
               const std::string& folder,
               const Prediction& predicted) {
  const std::vector<Cell> cells = e.cells();
  out(fmt::format("experiment {} in {}: {} arms x {} seeds = {} cells of {} steps of {} tokens\n",
                  e.name, folder, e.arms.size(), e.seeds.size(), cells.size(), e.steps,
                  plan.transfer.batch));
  for (const Arm& arm : e.arms) out(fmt::format("  {:<14} {}\n", arm.name, arm.flags()));
  out(fmt::format("evaluations: {} tokens, every {} steps and from step {} to {} every {}\n",
                  static_cast<int64_t>(plan.eval_tokens), "--eval-every", e.window.first,
                  e.window.last, e.window.every));
  for (size_t i = 0; i < cells.size(); ++i) out(fmt::format("  {:>3}  {}\n", i + 1, cells[i].name));
  out(fmt::format("predicted: {:.0f} s a cell, {} in all ({})\n", predicted.cell_s,
                  duration(predicted.cell_s * static_cast<double>(cells.size())), predicted.how));
}

/// The experiment as it is in the folder, or `wanted` when it is new or has more seeds.
Experiment settle(LabFolder& lab, Experiment wanted) {
  const std::vector<std::string> names = lab.experiment_names();
  if (std::find(names.begin(), names.end(), wanted.name) == names.end()) {
    lab.save_experiment(wanted);
    return wanted;
  }
  const Experiment there = lab.experiment(wanted.name);
  if (there == wanted) return there;
  Experiment extended = there;
  extended.seeds = wanted.seeds;
  const bool more = wanted.seeds.size() > there.seeds.size() &&
                    std::equal(there.seeds.begin(), there.seeds.end(), wanted.seeds.begin());
  if (extended == wanted && more) {
    lab.save_experiment(wanted);
    return wanted;
  }
  Experiment rebuilt = there;
  rebuilt.build_hash = wanted.build_hash;
  const std::string what = rebuilt == wanted ? "by another build of tightloop"
                                             : "with other arms, seeds, flags or evaluations";
  throw Error(ErrorKind::usage, fmt::format("'{}' holds an experiment {} that was made {}",
                                            lab.path(), wanted.name, what))
      .with_hint(fmt::format("its result: `tightloop lab report {0}`; a new one: --lab-dir {0}-2",
                             lab.path()));
}

int run_template(TrainFlags& train, const RunFlags& flags) {
  train.resolve();
  const std::string folder = default_folder(flags, train.preset);
  train.config.resume.reset();
  Trainer trainer(train.config, train.options);
  const TrainPlan& plan = trainer.plan();
  Experiment e = plan_experiment(train, flags, plan);
  if (e.seeds.size() < 2)
    talk("note: one seed an arm has no spread of its own: nothing but the sign can be seen\n");
  const TargetLock lock = lock_for(folder, train.preset, trainer.validation());
  e.lock_hash = lock.hash();
  e.window = dense_evaluations(e.steps, lock.crossing_progress);
  std::vector<LedgerRow> rows;
  if (fs::exists(fs::path(folder) / "ledger.sqlite")) rows = Ledger(folder).rows();
  const Prediction predicted = predict(plan, e.window, train.config.eval_every, rows);
  if (flags.dry_run) {
    show_plan(e, plan, folder, predicted);
    return kDone;
  }
  LabFolder lab(folder, true);
  if (!lab.has_lock()) lab.set_lock(lock);
  e = settle(lab, e);
  int64_t left = 0;
  for (const Cell& cell : e.cells()) {
    if (cell_state(lab, cell).kind != CellState::Kind::done) ++left;
  }
  talk(fmt::format("lab      {} (target {} <= {:.4f}: {})\n", folder, lock.metric, lock.threshold,
                   lock.method));
  if (left == 0)
    talk(
        fmt::format("all {} cells are there already; to measure again use another --lab-dir, to "
                    "add pairs say more --seeds\n",
                    e.cells().size()));
  else
    talk(fmt::format("cells    {} of {} to run, about {:.0f} s each, {} in all ({})\n\n", left,
                     e.cells().size(), predicted.cell_s,
                     duration(predicted.cell_s * static_cast<double>(left)), predicted.how));
  return run_and_show(lab, e, flags, predicted.cell_s);
}

// ---- lab lock ----

struct LockFlags : RunFlags {
  std::optional<double> floor_offset;
};

/// Where a threshold that nobody measured is expected to be crossed.
constexpr double kExpectedProgress = 0.85;

void show_lock(const LabFolder& lab, const LabFlags& flags) {
  const TargetLock lock = lab.lock();
  if (flags.json) {
    out(to_json(lock).dump() + "\n");
    return;
  }
  out(
      fmt::format("target {} <= {:.6f} in {}\n  {}\n  crossed at {:.1f} % of the steps; noise of "
                  "the metric {:.4f} ({:.0f} degrees of freedom)\n  hash {}\n",
                  lock.metric, lock.threshold, lab.path(), lock.method,
                  100 * lock.crossing_progress, lock.metric_sd, lock.metric_sd_df, lock.hash()));
}

/// Baselines of the experiment "lock", and what follows from them.
TargetLock derive_lock(LabFolder& lab, const Experiment& e, TargetLock lock) {
  std::vector<BaselineCurve> curves;
  for (const Cell& cell : e.cells()) {
    const CellState state = cell_state(lab, cell);
    if (state.kind != CellState::Kind::done)
      throw Error(ErrorKind::usage, fmt::format("baseline {} has no finished run", cell.name))
          .with_hint(fmt::format("`tightloop lab status {}`", lab.path()));
    const std::string id = state.row->text("run_id");
    curves.push_back({.run_id = id,
                      .steps = e.steps,
                      .points = measured_points(lab.file("runs/" + id), lock.metric)});
    lock.runs.push_back(id);
  }
  const LockDerivation d = derive_threshold(curves);
  lock.threshold = d.threshold;
  lock.metric_sd = d.metric_sd;
  lock.metric_sd_df = d.metric_sd_df;
  lock.crossing_progress = d.crossing_progress;
  lock.method = fmt::format("median best of {} baselines + {:.4g}", curves.size(), d.offset);
  std::string table;
  double noise = 0.0;
  for (const LockCheck& check : d.checks) {
    noise = std::max(noise, check.noise_share);
    table += fmt::format("  {:<40} crosses at {:5.1f} % of the steps, noise {:.2f} % of the time\n",
                         check.run_id, 100 * check.progress, 100 * check.noise_share);
  }
  talk(table);
  if (!d.quiet)
    talk(
        fmt::format("warning: noise of the metric moves the time to target by {:.1f} %, more than "
                    "the {:.1f} % a target should have; more --eval-tokens make it less\n",
                    100 * noise, 100 * kLockNoise));
  return lock;
}

int run_lock(TrainFlags& train, LockFlags& flags) {
  train.resolve();
  flags.template_name = "lock";
  const std::string folder = default_folder(flags, train.preset);
  Trainer trainer(train.config, train.options);
  const ValidationData validation = trainer.validation();
  TargetLock lock;
  lock.metric = train.config.target_metric;
  lock.eval_tokens = validation.tokens;
  lock.data_sha256 = validation.data_sha256;
  lock.tokenizer_sha256 = validation.tokenizer_sha256;
  lock.floor = validation.floor;
  lock.crossing_progress = kExpectedProgress;
  lock.created = utc_timestamp();
  LabFolder lab(folder, true);
  if (lab.has_lock())
    throw Error(ErrorKind::usage, fmt::format("'{}' has a target already", folder))
        .with_hint(fmt::format("see it with `tightloop lab status {}`; a new target needs a new "
                               "--lab-dir",
                               folder));
  if (train.config.target_threshold) {
    lock.threshold = *train.config.target_threshold;
    lock.method = "given";
  } else if (flags.floor_offset) {
    if (!validation.floor)
      fail(ErrorKind::usage, "--floor-offset: the floor of this data is not known");
    lock.metric = "val_loss";
    lock.threshold = *validation.floor + *flags.floor_offset;
    lock.method = fmt::format("floor {:.4f} + {} nats", *validation.floor, *flags.floor_offset);
  } else {
    Experiment e = plan_experiment(train, flags, trainer.plan());
    e.window = {.first = std::max<int64_t>(1, e.steps / 2),
                .last = e.steps,
                .every = dense_evaluations(e.steps, 1.0).every};
    const Prediction predicted =
        predict(trainer.plan(), e.window, train.config.eval_every, lab.ledger().rows());
    if (flags.dry_run) {
      show_plan(e, trainer.plan(), folder, predicted);
      return kDone;
    }
    e = settle(lab, e);
    const int code = run_and_show(lab, e, flags, predicted.cell_s);
    if (code != kDone) return code;
    lock = derive_lock(lab, e, lock);
  }
  lab.set_lock(lock);
  show_lock(lab, flags);
  return kDone;
}

// ---- lab resume, status, table ----

int resume_all(const LabFlags& flags) {
  LabFolder lab(find_lab(flags.lab_dir), true);
  int code = kDone;
  for (const std::string& name : lab.experiment_names()) {
    const Experiment e = lab.experiment(name);
    int64_t left = 0;
    for (const Cell& cell : e.cells()) {
      const CellState::Kind kind = cell_state(lab, cell).kind;
      if (kind == CellState::Kind::interrupted || kind == CellState::Kind::pending) ++left;
    }
    if (left > 0 && e.build_hash != build_hash())
      throw Error(ErrorKind::usage,
                  fmt::format("experiment {} in '{}' was begun by another build of tightloop: its "
                              "runs would not compare",
                              name, lab.path()))
          .with_hint("begin again in another folder: --lab-dir");
    talk(fmt::format("experiment {}: {} of {} cells to run\n", name, left, e.cells().size()));
    const int one = run_and_show(lab, e, flags, 0.0);
    if (one != kDone) code = one;
    if (one == kInterrupted) break;
  }
  return code;
}

std::string_view name_of(CellState::Kind kind) {
  switch (kind) {
    case CellState::Kind::done:
      return "done";
    case CellState::Kind::broken:
      return "failed";
    case CellState::Kind::interrupted:
      return "interrupted";
    case CellState::Kind::pending:
      return "to run";
  }
  return "?";
}

int show_status(const LabFlags& flags) {
  const LabFolder lab(find_lab(flags.lab_dir), false);
  OrderedJson json;
  json["v"] = 1;
  json["lab_dir"] = lab.path();
  if (lab.has_lock()) json["lock"] = to_json(lab.lock());
  OrderedJson experiments = OrderedJson::array();
  std::string text =
      fmt::format("{}: {} rows in the ledger\n", lab.path(), lab.ledger().rows().size());
  if (lab.has_lock())
    text += fmt::format("target: {} <= {:.4f} ({})\n", lab.lock().metric, lab.lock().threshold,
                        lab.lock().method);
  else
    text += "no target yet\n";
  for (const std::string& name : lab.experiment_names()) {
    const Experiment e = lab.experiment(name);
    text += fmt::format("\nexperiment {}\n", name);
    OrderedJson cells = OrderedJson::array();
    for (const Cell& cell : e.cells()) {
      const CellState state = cell_state(lab, cell);
      const std::string status = state.row ? state.row->text("status") : "";
      const std::string detail = state.row ? state.row->text("detail") : "";
      text +=
          fmt::format("  {:<28} {:<12} {} {}\n", cell.name, name_of(state.kind), status, detail);
      cells.push_back({{"cell", cell.name},
                       {"state", name_of(state.kind)},
                       {"status", status},
                       {"detail", detail},
                       {"failures", state.failures},
                       {"run_folder", state.run_folder}});
    }
    experiments.push_back({{"name", name}, {"cells", cells}});
  }
  json["experiments"] = experiments;
  out(flags.json ? json.dump() + "\n" : text);
  return kDone;
}

struct TableFlags : LabFlags {
  std::string experiment;
  bool classic = false;
};

int show_table(const TableFlags& flags) {
  const LabFolder lab(find_lab(flags.lab_dir), false);
  const TargetLock lock = lab.lock();
  const std::vector<LedgerRow> rows = lab.ledger().rows();
  OrderedJson json = OrderedJson::array();
  std::string text;
  for (const std::string& name : lab.experiment_names()) {
    if (!flags.experiment.empty() && name != flags.experiment) continue;
    const Experiment e = lab.experiment(name);
    if (e.lock_hash.empty()) continue;
    std::vector<ResultGroup> groups;
    for (const Arm& arm : e.arms) {
      ResultGroup group{.name = arm.name, .steps = e.steps};
      for (const LedgerRow* run : ok_runs(rows, name, arm.name)) {
        const auto metric = final_metric(*run, lock), time = run->number("train_clock_sec");
        if (!metric || !time) continue;
        group.losses.push_back(*metric);
        group.times.push_back(*time);
      }
      json.push_back({{"experiment", name},
                      {"arm", arm.name},
                      {"steps", group.steps},
                      {"losses", group.losses},
                      {"times", group.times}});
      groups.push_back(std::move(group));
    }
    text +=
        fmt::format("{}experiment {}: {} <= {:.4f}; times: train clock of the whole run, s\n\n{}",
                    text.empty() ? "" : "\n", name, lock.metric, lock.threshold,
                    results_table(groups, {.target = lock.threshold, .classic = flags.classic}));
  }
  if (json.empty())
    throw Error(ErrorKind::usage, fmt::format("'{}' has no experiment to show", lab.path()))
        .with_hint("`tightloop lab run G`");
  out(flags.json ? json.dump() + "\n" : text);
  return kDone;
}

int show_report(const ReportFlags& flags) {
  LabFolder lab(find_lab(flags.lab_dir), false);
  OrderedJson json = OrderedJson::array();
  for (const std::string& name : lab.experiment_names()) {
    if (!flags.experiment.empty() && name != flags.experiment) continue;
    const Experiment e = lab.experiment(name);
    if (e.lock_hash.empty()) continue;
    const std::string path = write_report(lab, e, flags);
    json.push_back({{"experiment", name}, {"report", path}});
    if (!flags.json) talk(fmt::format("report: {}\n", path));
  }
  if (json.empty())
    throw Error(ErrorKind::usage, fmt::format("'{}' has no experiment to report", lab.path()))
        .with_hint("`tightloop lab run G`");
  if (flags.json) out(json.dump() + "\n");
  return kDone;
}

void add_reading_options(CLI::App& command, LabFlags& flags) {
  command.add_option("folder", flags.lab_dir, "lab folder (not given: the newest below ./lab)")
      ->type_name("DIR");
  command.add_flag("--json", flags.json, "one JSON object on stdout");
}

void add_program_option(CLI::App& command, LabFlags& flags) {
  command.add_option("--program", flags.program, "what trains a cell [this program]")
      ->type_name("FILE")
      ->group("");
}

void add_profile_option(CLI::App& command, LabFlags& flags) {
  command
      .add_option("--profile-rounds", flags.profile_rounds,
                  "the report times every op of every arm in so many steps; 0: no roofline [5]")
      ->type_name("rounds")
      ->check(CLI::Range(0, 1000));
}

void add_run_options(CLI::App& command, LabFlags& flags) {
  command.add_option("--lab-dir", flags.lab_dir, "lab folder [lab/<preset>, or lab/main]")
      ->type_name("DIR");
  command.add_option("--seeds", flags.seeds, "seeds of every arm: 1,2 or 1..10 [1,2]")
      ->type_name("LIST");
  command
      .add_option("--cell-timeout", flags.silence_s,
                  "seconds without a sign of life after which a cell has hung [600]")
      ->type_name("seconds")
      ->check(CLI::Range(0.1, 1e9));
  command.add_flag("--verify-resume", flags.verify_resume,
                   "check of every cell: save, load, continue, same bits");
  command.add_flag("--dry-run", flags.dry_run, "print the cells and the predicted time");
  command.add_flag("--json", flags.json, "one JSON object on stdout");
  add_program_option(command, flags);
}

}  // namespace

void add_lab(CLI::App& app, Runner& runner, const std::string& command_line) {
  auto* lab = app.add_subcommand("lab", "experiments: is a change really faster to the target?");

  auto* run =
      lab->add_subcommand("run", "run a template: G (the two rewrites) or AA (baseline twice)");
  auto train = std::make_shared<TrainFlags>(*run);
  auto run_flags = std::make_shared<RunFlags>();
  run_flags->command = command_line;
  run->add_option("template", run_flags->template_name, "G or AA")->required();
  add_run_options(*run, *run_flags);
  add_profile_option(*run, *run_flags);
  run->add_flag("--require-verdict", run_flags->require_verdict, "exit 1 when inconclusive");
  run->callback([train, run_flags, &runner] {
    runner = [train, run_flags] { return run_template(*train, *run_flags); };
  });

  auto* lock = lab->add_subcommand(
      "lock",
      "fix the target of a lab folder: from baseline runs, --target-threshold, or the floor");
  auto lock_train = std::make_shared<TrainFlags>(*lock);
  auto lock_flags = std::make_shared<LockFlags>();
  lock_flags->command = command_line;
  add_run_options(*lock, *lock_flags);
  lock->add_option("--floor-offset", lock_flags->floor_offset,
                   "target = known floor of the validation data + this")
      ->type_name("nats");
  lock->callback([lock_train, lock_flags, &runner] {
    runner = [lock_train, lock_flags] { return run_lock(*lock_train, *lock_flags); };
  });

  auto* resume = lab->add_subcommand("resume", "run what is not finished");
  auto resume_flags = std::make_shared<LabFlags>();
  add_reading_options(*resume, *resume_flags);
  add_profile_option(*resume, *resume_flags);
  add_program_option(*resume, *resume_flags);
  resume->callback(
      [resume_flags, &runner] { runner = [resume_flags] { return resume_all(*resume_flags); }; });

  auto* status = lab->add_subcommand("status", "every cell and where it stands");
  auto status_flags = std::make_shared<LabFlags>();
  add_reading_options(*status, *status_flags);
  status->callback(
      [status_flags, &runner] { runner = [status_flags] { return show_status(*status_flags); }; });

  auto* table = lab->add_subcommand("table", "the results table of the speed-runs");
  auto table_flags = std::make_shared<TableFlags>();
  add_reading_options(*table, *table_flags);
  table->add_option("--experiment", table_flags->experiment, "only this one")->type_name("NAME");
  table->add_flag("--classic", table_flags->classic, "their columns and no others");
  table->callback(
      [table_flags, &runner] { runner = [table_flags] { return show_table(*table_flags); }; });

  auto* report = lab->add_subcommand("report", "one HTML file: verdict, roofline, curves, memory");
  auto report_flags = std::make_shared<ReportFlags>();
  add_reading_options(*report, *report_flags);
  report->add_option("--experiment", report_flags->experiment, "only this one")->type_name("NAME");
  add_profile_option(*report, *report_flags);
  report->add_option("--html", report_flags->html, "where to write it")->type_name("FILE");
  report->add_option("--svg", report_flags->svg_folder, "each panel as SVG into this folder")
      ->type_name("DIR");
  report->add_option("--png", report_flags->png_folder, "each panel as PNG into this folder")
      ->type_name("DIR");
  report->add_flag("--text", report_flags->text, "the report as text on stdout");
  report->callback(
      [report_flags, &runner] { runner = [report_flags] { return show_report(*report_flags); }; });

  for (auto* sub : {run, lock, resume, status, table, report}) sub->allow_extras();
  lab->require_subcommand(1);
  lab->footer("Example: tightloop lab run G --preset quick-lab");
}

}  // namespace tightloop::cli
