#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/core/json.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/report_data.h"
#include "tightloop/lab/results_table.h"
#include "tightloop/lab/run_row.h"
#include "tightloop/lab/verdict.h"

namespace tightloop::cli {

namespace {
namespace fs = std::filesystem;
}

std::string find_lab(const std::string& given) {
  if (!given.empty()) {
    expect_lab(given);
    return given;
  }
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

namespace {

/// What resume() is for when the ledger was lost: runs that ended and have no row.
std::string lost_rows_note(const LabFolder& lab, int64_t lost) {
  if (lost == 0) return "";
  return fmt::format(
      "{} finished {} no row in the ledger: `tightloop lab resume {}` makes {} again\n", lost,
      lost == 1 ? "run has" : "runs have", lab.path(), lost == 1 ? "it" : "them");
}

bool is_lost(const CellState& state) {
  return state.kind == CellState::Kind::interrupted && has_ended(state.run_folder);
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

}  // namespace

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
  const std::optional<std::string> holder = lock_holder(lab.file(".lock"));
  if (holder) {
    json["running"] = *holder;
    text += fmt::format("running: {}\n", *holder);
  }
  int64_t lost = 0;
  for (const std::string& name : lab.experiment_names()) {
    const Experiment e = lab.experiment(name);
    text += fmt::format("\nexperiment {}\n", name);
    OrderedJson cells = OrderedJson::array();
    for (const Cell& cell : e.cells()) {
      const CellState state = cell_state(lab, cell);
      const std::string status = state.row ? state.row->text("status") : "";
      const std::string detail = state.row ? state.row->text("detail") : "";
      // The lab that holds the folder runs such a cell, or will.
      const bool runs = holder && state.kind == CellState::Kind::interrupted;
      const std::string_view shown = runs ? "running" : name_of(state.kind);
      if (!holder && is_lost(state)) ++lost;
      text += fmt::format("  {:<28} {:<12} {} {}\n", cell.name, shown, status, detail);
      cells.push_back({{"cell", cell.name},
                       {"state", shown},
                       {"status", status},
                       {"detail", detail},
                       {"failures", state.failures},
                       {"run_folder", state.run_folder}});
    }
    experiments.push_back({{"name", name}, {"cells", cells}});
  }
  json["experiments"] = experiments;
  out(flags.json ? json.dump() + "\n" : text);
  talk(lost_rows_note(lab, lost));
  return kDone;
}

int show_table(const TableFlags& flags) {
  const LabFolder lab(find_lab(flags.lab_dir), false);
  const TargetLock lock = lab.lock();
  const std::vector<LedgerRow> rows = lab.ledger().rows();
  OrderedJson json = OrderedJson::array();
  std::string text;
  int64_t lost = 0;
  for (const std::string& name : lab.experiment_names()) {
    if (!flags.experiment.empty() && name != flags.experiment) continue;
    const Experiment e = lab.experiment(name);
    if (e.lock_hash.empty()) continue;
    for (const Cell& cell : e.cells()) {
      if (is_lost(cell_state(lab, cell))) ++lost;
    }
    std::vector<ResultGroup> groups;
    for (const Arm& arm : e.arms) {
      ResultGroup group{.name = arm.name, .steps = e.steps};
      for (const LedgerRow* run : ok_runs(rows, name, arm.name)) {
        const auto metric = final_metric(*run, lock), time = run->number("train_clock_sec");
        if (!metric || !time) continue;
        group.losses.push_back(*metric);
        group.times.push_back(*time);
      }
      group.failed = failed_cells(rows, name, arm.name);
      json.push_back({{"experiment", name},
                      {"arm", arm.name},
                      {"steps", group.steps},
                      {"losses", group.losses},
                      {"failed", group.failed},
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
  if (!lock_holder(lab.file(".lock"))) talk(lost_rows_note(lab, lost));
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

}  // namespace tightloop::cli
