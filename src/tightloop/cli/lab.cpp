#include <memory>
#include <tuple>

#include "tightloop/cli/lab_commands.h"

namespace tightloop::cli {
namespace {

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
                   "check of every cell: save, load, continue, same bits; the checkpoint for it "
                   "replaces those of --save-every");
  command.add_flag("--dry-run", flags.dry_run, "print the cells and the predicted time");
  command.add_flag("--json", flags.json, "one JSON object on stdout");
  add_program_option(command, flags);
}

/// What the lab decides itself is refused as a flag, so the help does not offer it.
void hide_lab_decided(CLI::App& command, const std::string& template_name) {
  for (const std::string& flag : lab_decided_options(template_name))
    command.get_option("--" + flag)->group("");
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
  hide_lab_decided(*run, "G");
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
  hide_lab_decided(*lock, "lock");
  add_run_options(*lock, *lock_flags);
  lock->get_option("--target-threshold")->description("the target itself, without baseline runs");
  lock->add_option("--floor-offset", lock_flags->floor_offset,
                   "target = known floor of the validation data + this")
      ->type_name("nats");
  lock->callback([lock, lock_train, lock_flags, &runner] {
    for (const char* flag : {"--seeds", "--verify-resume", "--cell-timeout"}) {
      if (lock->count(flag) > 0) lock_flags->baseline_flags.emplace_back(flag);
    }
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

  const std::string switches = "Switches have a --no- form. Settings: TOML file < --set < flag.\n";
  for (const auto& [sub, example, note] :
       {std::tuple(run, "run G --preset quick-lab", switches),
        std::tuple(lock, "lock -c my.toml --seeds 1,2,3", switches),
        std::tuple(resume, "resume lab/quick-lab", std::string()),
        std::tuple(status, "status lab/quick-lab", std::string()),
        std::tuple(table, "table lab/quick-lab --classic", std::string()),
        std::tuple(report, "report lab/quick-lab --svg figures", std::string())}) {
    sub->allow_extras();
    sub->footer(fmt::format("Example: tightloop lab {}\n{}{}", example, note, kExitCodes));
  }
  lab->require_subcommand(1);
  lab->footer("Example: tightloop lab run G --preset quick-lab");
}

}  // namespace tightloop::cli
