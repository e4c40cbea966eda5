#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/core/json.h"
#include "tightloop/lab/report_data.h"
#include "tightloop/lab/results_table.h"
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
