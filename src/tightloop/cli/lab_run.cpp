#include <algorithm>
#include <filesystem>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/io/host_info.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;

/// The target of a folder: there already, or shipped with the preset. Not saved here.
TargetLock lock_for(const std::string& lab_dir,
                    const std::string& preset,
                    const ValidationData& validation,
                    int64_t max_seq_len) {
  const std::string path = (fs::path(lab_dir) / "lock/target.json").string();
  if (fs::exists(path)) {
    const TargetLock lock = load_lock(path);
    expect_same_evaluation(lock, validation, max_seq_len, lab_dir);
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
  lock.max_seq_len = max_seq_len;
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

}  // namespace

int run_template(TrainFlags& train, const RunFlags& flags) {
  train.resolve();
  const std::string folder = default_folder(flags, train.preset);
  train.config.resume.reset();
  Trainer trainer(train.config, train.options);
  const TrainPlan& plan = trainer.plan();
  Experiment e = plan_experiment(train, flags, plan, folder);
  if (e.seeds.size() < 2)
    talk("note: one seed an arm has no spread of its own: nothing but the sign can be seen\n");
  const TargetLock lock =
      lock_for(folder, train.preset, trainer.validation(), plan.model.sequence_len);
  e.lock_hash = lock.hash();
  e.window = dense_evaluations(e.steps, lock.crossing_progress);
  const Prediction predicted = predict(plan, e, train.config.eval_every, rows_of(folder));
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
  return run_and_show(lab, e, flags);
}

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
    const int one = run_and_show(lab, e, flags);
    if (one != kDone) code = one;
    if (one == kInterrupted) break;
  }
  return code;
}

}  // namespace tightloop::cli
