#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/lab/experiment.h"
#include "tightloop/train/trainer.h"

/// What the subcommands of `lab` share. Each has its file: lab_run (run, resume), lab_lock,
/// lab_show (status, table, report); lab_plan says what will be run, lab_result what came out.
namespace tightloop::cli {

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

struct RunFlags : LabFlags {
  std::string template_name;
  std::string command;
};

struct LockFlags : RunFlags {
  std::optional<double> floor_offset;
  std::vector<std::string> baseline_flags;  // of those given: what only baseline runs use
};

struct TableFlags : LabFlags {
  std::string experiment;
  bool classic = false;
};

struct ReportFlags : LabFlags {
  std::string experiment;
  std::string html;  // empty: report-<experiment>.html in the lab folder
  std::string svg_folder, png_folder;
  bool text = false;
};

// The subcommands; each returns the exit code.
int run_template(TrainFlags& train, const RunFlags& flags);
int run_lock(TrainFlags& train, LockFlags& flags);
int resume_all(const LabFlags& flags);
int show_status(const LabFlags& flags);
int show_table(const TableFlags& flags);
int show_report(const ReportFlags& flags);

// ---- lab_plan ----

/// Seconds of a cell: from runs of its shape when there are any, else from FLOPs.
struct Prediction {
  double cell_s = 0.0;
  std::string how;
};
Prediction predict(const TrainPlan& plan,
                   const Experiment& experiment,
                   int64_t eval_every,
                   const std::vector<LedgerRow>& rows);

/// The rows of a lab folder; none where there is no ledger. Makes nothing.
std::vector<LedgerRow> rows_of(const std::string& folder);

std::string default_folder(const LabFlags& flags, const std::string& preset);
/// Without lock and evaluation window. Measures the peak of this machine, and warns when others use
/// it, unless the experiment is in the folder already.
Experiment plan_experiment(TrainFlags& train,
                           const RunFlags& flags,
                           const TrainPlan& plan,
                           const std::string& folder);
void show_plan(const Experiment& e,
               const TrainPlan& plan,
               const std::string& folder,
               const Prediction& predicted);
/// The experiment as it is in the folder, or `wanted` when it is new or has more seeds.
Experiment settle(LabFolder& lab, Experiment wanted);

// ---- lab_result ----

/// Profiles the arms, writes the report; returns its path.
std::string write_report(const LabFolder& lab,
                         const Experiment& experiment,
                         const ReportFlags& flags);
/// Runs what is left of an experiment and shows the result; returns the exit code.
int run_and_show(LabFolder& lab, const Experiment& experiment, const LabFlags& flags);

// ---- lab_show ----

/// The folder a reading command means: the one given, else the newest below lab/. Error{usage} when
/// it is no lab.
std::string find_lab(const std::string& given);

}  // namespace tightloop::cli
