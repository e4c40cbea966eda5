#include "tightloop/lab/report_data.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "tightloop/lab/arm_setup.h"
#include "tightloop/lab/report/roofline.h"
#include "tightloop/lab/report/svg.h"
#include "tightloop/lab/run_row.h"

namespace tightloop {
namespace {

double percent(double ln) {
  return 100.0 * std::expm1(ln);
}

std::string signed_percent(double ln) {
  return signed_number(percent(ln), 2);
}

std::vector<double> numbers(const std::vector<const LedgerRow*>& runs, std::string_view column) {
  std::vector<double> values;
  for (const LedgerRow* run : runs) {
    if (const auto x = run->number(column)) values.push_back(*x);
  }
  return values;
}

std::string mean_or_dash(const std::vector<double>& values, int digits) {
  return values.empty() ? "-" : fmt::format("{:.{}f}", sample_of(values).mean, digits);
}

std::string thousands(const std::vector<double>& values) {
  return values.empty() ? "-" : fmt::format("{:.2f}k", 1e-3 * sample_of(values).mean);
}

/// "12.31 [12.02, 12.60]": mean over the runs, and the 90 % interval of that mean that follows from
/// the intervals of the runs.
std::string time_cell(const std::vector<const LedgerRow*>& runs) {
  double sum = 0.0, squares = 0.0;
  int64_t n = 0;
  for (const LedgerRow* run : runs) {
    const auto t = run->number("time_to_target_sec_measured");
    const auto high = run->number("ttt_hi");
    if (!t || !high) continue;
    sum += *t;
    squares += (*high - *t) * (*high - *t);
    ++n;
  }
  if (n == 0) return "not reached";
  const double mean = sum / static_cast<double>(n);
  const double half = std::sqrt(squares) / static_cast<double>(n);
  std::string text = fmt::format("{:.2f} [{:.2f}, {:.2f}]", mean, mean - half, mean + half);
  if (n < static_cast<int64_t>(runs.size())) text += fmt::format(" ({}/{})", n, runs.size());
  return text;
}

std::string effect_cell(const Effect& e) {
  if (e.pairs == 0) return "-";
  if (!std::isfinite(e.low)) return signed_percent(e.mean) + " %";
  return fmt::format("{} % [{}, {}]", signed_percent(e.mean), signed_percent(e.low),
                     signed_percent(e.high));
}

void add_effect(ReportVerdict& verdict, const char* what, const std::optional<Effect>& e) {
  if (!e || e->pairs == 0 || !std::isfinite(e->low)) return;
  verdict.effects.push_back({what, percent(e->mean), percent(e->low), percent(e->high)});
}

ReportTable summary_table(const Experiment& experiment,
                          const std::vector<LedgerRow>& rows,
                          const TargetLock& lock,
                          const std::vector<ArmVerdict>& verdicts) {
  const auto cells = summary_cells(experiment, rows, lock, verdicts);
  return {.title = "Result",
          .note =
              "Time to target: mean over the runs on the train clock, with its 90 % interval "
              "from the noise of the metric and interpolation. Time per step: median, against "
              "the reference, pair by pair, with the 90 % interval from measured repeats.",
          .columns = cells[0],
          .rows = {cells.begin() + 1, cells.end()}};
}

/// Section 8 of the laboratory's rules: what a step must not do, counted.
ReportTable stability_table(const Experiment& experiment, const std::vector<LedgerRow>& rows) {
  ReportTable table{
      .title = "Stability",
      .note =
          "Programs bound to kernels before the first step (on a GPU graphs captured), and inside "
          "counted steps; plans and memory blocks made, and Programs run outside a graph, inside "
          "counted steps; how often a counted step waited for the GPU (these five must be 0); "
          "cuBLASLt's choices that were found, not timed; loss spikes, "
          "start of the process to the first step, the first step, and the step "
          "from which times stay within 5 % of the median. Means over runs.",
      .columns = {"arm", "Programs", "bound in steps", "plans in steps", "blocks in steps",
                  "graph breaks", "waits a step", "choices found %", "loss spikes", "startup s",
                  "first step ms", "median ms", "stalls %", "steady from step", "resume check"},
      .rows = {}};
  for (const Arm& arm : experiment.arms) {
    const auto runs = ok_runs(rows, experiment.name, arm.name);
    std::vector<double> stalls = numbers(runs, "stall_frac");
    std::vector<double> found = numbers(runs, "autotune_hit_rate");
    for (double& x : stalls) x *= 100.0;
    for (double& x : found) x *= 100.0;
    std::set<std::string> checks;
    for (const LedgerRow* run : runs) checks.insert(run->text("resume_check"));
    table.rows.push_back({arm.name, mean_or_dash(numbers(runs, "captures"), 0),
                          mean_or_dash(numbers(runs, "recaptures"), 0),
                          mean_or_dash(numbers(runs, "plan_rebuilds"), 0),
                          mean_or_dash(numbers(runs, "allocs_after_warmup"), 0),
                          mean_or_dash(numbers(runs, "graph_breaks"), 0),
                          mean_or_dash(numbers(runs, "host_syncs_per_step"), 2),
                          mean_or_dash(found, 1), mean_or_dash(numbers(runs, "loss_spikes"), 1),
                          mean_or_dash(numbers(runs, "startup_sec"), 2),
                          mean_or_dash(numbers(runs, "first_step_ms"), 1),
                          mean_or_dash(numbers(runs, "dt_median_ms"), 2), mean_or_dash(stalls, 1),
                          mean_or_dash(numbers(runs, "steady_step"), 0),
                          checks.size() == 1 && !checks.begin()->empty() ? *checks.begin() : "-"});
  }
  return table;
}

ReportTable runs_table(const LabFolder& lab,
                       const Experiment& experiment,
                       const std::vector<LedgerRow>& rows) {
  ReportTable table{.title = "Every run",
                    .note = "Everything else about them is in " + lab.file("results.csv"),
                    .columns = {"run", "seed", "status", "time to target s", "process clock s",
                                "steps", "tok/s", "step ms", "stalls %"},
                    .rows = {}};
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") != experiment.name) continue;
    const auto number = [&](std::string_view column, int digits, double scale = 1.0) {
      const auto x = row.number(column);
      return x ? fmt::format("{:.{}f}", scale * *x, digits) : std::string("-");
    };
    table.rows.push_back({row.text("run_id"), row.text("seed"), row.text("status"),
                          number("time_to_target_sec_measured", 2), number("ttt_process_sec", 2),
                          number("steps_to_target", 1), number("tok_per_sec_median", 0),
                          number("dt_median_ms", 2), number("stall_frac", 1, 100.0)});
  }
  return table;
}

}  // namespace

std::vector<std::string> arm_names(const Experiment& experiment) {
  std::vector<std::string> names;
  for (const Arm& arm : experiment.arms) names.push_back(arm.name);
  return names;
}

std::vector<const LedgerRow*> ok_runs(const std::vector<LedgerRow>& rows,
                                      const std::string& experiment,
                                      const std::string& arm) {
  std::vector<const LedgerRow*> runs;
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") == experiment && row.text("arm") == arm &&
        row.text("status") == "ok")
      runs.push_back(&row);
  }
  return runs;
}

std::vector<std::string> failed_cells(const std::vector<LedgerRow>& rows,
                                      const std::string& experiment,
                                      const std::string& arm) {
  std::map<int64_t, std::string> failed;  // by seed: the last row counts
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") != experiment || row.text("arm") != arm || !row.integer("seed") ||
        row.text("detail") == kLabEnded)
      continue;
    const std::string status = row.text("status");
    failed[*row.integer("seed")] = status == "ok" ? "" : row.text("experiment_name") + " " + status;
  }
  std::vector<std::string> cells;
  for (auto& [seed, text] : failed) {
    if (!text.empty()) cells.push_back(std::move(text));
  }
  return cells;
}

std::string failed_note(const Experiment& experiment, const std::vector<LedgerRow>& rows) {
  std::string text;
  for (const Arm& arm : experiment.arms) {
    for (const std::string& cell : failed_cells(rows, experiment.name, arm.name))
      text += (text.empty() ? "" : ", ") + cell;
  }
  return text.empty() ? "" : "Without a result, counted in runs only: " + text + ".";
}

std::string target_note(const LabFolder& lab,
                        const Experiment& experiment,
                        const std::vector<LedgerRow>& rows,
                        const TargetLock& lock) {
  double noise = 0.0;
  for (const LedgerRow* run : ok_runs(rows, experiment.name, experiment.arms[0].name)) {
    const Crossing c =
        find_crossing(measured_points(lab.file("runs/" + run->text("run_id")), lock.metric),
                      lock.threshold, lock.metric_sd);
    if (c.status == Crossing::Status::crossed)
      noise = std::max(noise, std::abs(lock.metric_sd / c.slope) / c.train_sec);
  }
  if (!(noise > kLockNoise)) return "";
  return fmt::format(
      "The target misses the rule of {:.1f} % noise: that of {} moves the time to it by {:.2g} %, "
      "as the runs are short; the verdict rests on the time per step.",
      100.0 * kLockNoise, lock.metric, 100.0 * noise);
}

std::vector<std::vector<std::string>> summary_cells(const Experiment& experiment,
                                                    const std::vector<LedgerRow>& rows,
                                                    const TargetLock& lock,
                                                    const std::vector<ArmVerdict>& verdicts) {
  std::vector<std::vector<std::string>> cells{{"arm", "runs", "time to target s [90 %]",
                                               "steps to target", "tok/s", "peak MiB",
                                               "final " + lock.metric, "time per step", "verdict"}};
  for (size_t i = 0; i < experiment.arms.size(); ++i) {
    const std::string& arm = experiment.arms[i].name;
    const auto runs = ok_runs(rows, experiment.name, arm);
    std::vector<double> metric;
    for (const LedgerRow* run : runs) {
      if (const auto m = final_metric(*run, lock)) metric.push_back(*m);
    }
    std::string change = "reference", verdict = "-";
    if (i > 0) {
      const ArmVerdict& v = verdicts[i - 1];
      change = effect_cell(v.step_time);
      verdict = verdict_word(v);
    }
    const size_t failed = failed_cells(rows, experiment.name, arm).size();
    cells.push_back({arm,
                     failed == 0 ? fmt::format("{}", runs.size())
                                 : fmt::format("{}/{}", runs.size(), runs.size() + failed),
                     time_cell(runs), mean_or_dash(numbers(runs, "steps_to_target"), 1),
                     thousands(numbers(runs, "tok_per_sec_median")),
                     mean_or_dash(numbers(runs, "peak_mem_mib"), 1), mean_or_dash(metric, 4),
                     change, verdict});
  }
  return cells;
}

ReportData report_data(const LabFolder& lab,
                       const Experiment& experiment,
                       int profile_rounds,
                       const std::function<void()>& stop) {
  const TargetLock lock = lab.lock();
  const std::vector<LedgerRow> rows = lab.ledger().rows();
  const std::vector<ArmVerdict> verdicts =
      judge(rows, experiment.name, arm_names(experiment), lock);

  ReportData data;
  data.title = fmt::format("Template {} in {}", experiment.name, lab.path());
  data.metric = lock.metric;
  data.threshold = lock.threshold;
  data.answer = headline(verdicts, experiment.name);
  if (lock.metric == "val_loss") data.floor = lock.floor;
  if (lock.metric_sd > 0.0) {
    data.metric_sd = lock.metric_sd;
    data.metric_sd_source =
        fmt::format("{} of the target's baselines, {:.0f} degrees of freedom",
                    lock.runs.empty() ? "shipped figure" : fmt::format("{} runs", lock.runs.size()),
                    lock.metric_sd_df);
  }
  for (const Arm& arm : experiment.arms) data.arms.push_back({arm.name, arm.flags()});
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") != experiment.name) continue;
    ReportRun run{.arm = row.text("arm"),
                  .seed = row.integer("seed").value_or(0),
                  .status = row.text("status"),
                  .curve = {},
                  .crossing = std::nullopt};
    for (const MeasuredPoint& p :
         measured_points(lab.file("runs/" + row.text("run_id")), lock.metric))
      run.curve.push_back({p.train_sec, static_cast<double>(p.step), p.metric});
    if (const auto t = row.number("time_to_target_sec_measured"))
      run.crossing =
          ReportCrossing{*t, row.number("ttt_lo").value_or(*t), row.number("ttt_hi").value_or(*t),
                         row.number("steps_to_target").value_or(0.0)};
    data.runs.push_back(std::move(run));
  }
  for (const ArmVerdict& v : verdicts) {
    ReportVerdict verdict{.arm = v.arm, .word = verdict_word(v), .text = v.text, .effects = {}};
    add_effect(verdict, "time per step", v.step_time);
    add_effect(verdict, "time to target", v.time_to_target);
    add_effect(verdict, "steps to target", v.steps_to_target);
    data.verdicts.push_back(std::move(verdict));
  }
  data.tables = {summary_table(experiment, rows, lock, verdicts), stability_table(experiment, rows),
                 runs_table(lab, experiment, rows)};
  if (const std::string note = target_note(lab, experiment, rows, lock); !note.empty())
    data.tables[0].note = note + " " + data.tables[0].note;
  if (const std::string note = failed_note(experiment, rows); !note.empty())
    data.tables[0].note = note + " " + data.tables[0].note;

  // The Programs of the arms: built again, they are what the runs ran.
  std::vector<std::unique_ptr<ArmSetup>> setups;
  std::vector<ProfiledArm> profiled;
  for (const Arm& arm : experiment.arms) {
    setups.push_back(set_up(experiment, arm));
    const Trainer& trainer = *setups.back()->trainer;
    profiled.push_back({arm.name, &trainer.programs()});
    data.memory.push_back(memory_of(arm.name, trainer.plan()));
    for (ReportRewrite& rewrite : rewrites_of(trainer.programs())) {
      const bool known = std::any_of(data.rewrites.begin(), data.rewrites.end(),
                                     [&](const auto& r) { return r.name == rewrite.name; });
      if (!known) data.rewrites.push_back(std::move(rewrite));
    }
  }
  std::vector<std::string> profile_notes;
  if (profile_rounds > 0) {
    StepProfile profile = profile_step(profiled, setups[0]->trainer->plan(), profile_rounds, stop);
    data.ceilings = profile.ceilings;
    data.points = std::move(profile.points);
    profile_notes = std::move(profile.notes);
  }
  data.machine = machine_facts(data.ceilings ? &*data.ceilings : nullptr);

  if (!lock.command.empty()) data.commands.push_back(lock.command);
  for (const std::string& command :
       {experiment.command, fmt::format("tightloop lab report {}", lab.path())})
    data.commands.push_back(command);
  data.notes = {
      fmt::format("Target: {} <= {:.6f}, {}. Lock {}.", lock.metric, lock.threshold, lock.method,
                  lock.hash()),
      "All cells run to their full horizon; the time to target is measured afterwards, "
      "where the curve goes below the target and stays there.",
      fmt::format("Evaluations besides --eval-every: every {} steps from {} to {}, fixed "
                  "before the first run, the same for all.",
                  experiment.window.every, experiment.window.first, experiment.window.last),
      fmt::format("Both arms of a pair have the same seed and see the same data in the "
                  "same order; {} has every rewrite of this experiment off.",
                  reference_name())};
  data.notes.insert(data.notes.end(), profile_notes.begin(), profile_notes.end());
  return data;
}

}  // namespace tightloop
