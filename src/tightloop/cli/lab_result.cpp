#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/cli/lab_view.h"
#include "tightloop/core/json.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/report_data.h"
#include "tightloop/lab/verdict.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

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

namespace {

/// Judges, keeps decisions/<name>.json, prints. Returns the exit code.
int show_result(LabFolder& lab, const Experiment& experiment, const LabFlags& flags) {
  const TargetLock lock = lab.lock();
  const std::vector<LedgerRow> rows = lab.ledger().rows();
  const std::vector<ArmVerdict> verdicts =
      judge(rows, experiment.name, arm_names(experiment), lock);
  const std::string table = final_table(experiment, rows, lock, verdicts);
  const std::string note = target_note(lab, experiment, rows, lock);
  const std::string failed = failed_note(experiment, rows);
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
  if (!failed.empty()) decision["failed_note"] = failed;
  decision["verdicts"] = judged;
  decision["table"] = table;
  write_file_atomically(lab.file("decisions/" + experiment.name + ".json"),
                        decision.dump(1) + "\n");
  if (flags.json) {
    out(decision.dump() + "\n");
  } else {
    out("\n" + table + "\n");
    if (!failed.empty()) out(failed + "\n\n");
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

}  // namespace

int run_and_show(LabFolder& lab, const Experiment& experiment, const LabFlags& flags) {
  LabView view;
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

}  // namespace tightloop::cli
