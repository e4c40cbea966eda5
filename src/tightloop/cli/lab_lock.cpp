#include <algorithm>
#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/core/json.h"
#include "tightloop/io/host_info.h"
#include "tightloop/lab/run_row.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;

/// Where a threshold that nobody measured is expected to be crossed.
constexpr double kExpectedProgress = 0.85;

void show_lock(const TargetLock& lock, const std::string& folder, const LabFlags& flags) {
  if (flags.json) {
    out(to_json(lock).dump() + "\n");
    return;
  }
  std::string text =
      fmt::format("target {} <= {:.6f} in {}\n", lock.metric, lock.threshold, folder);
  if (lock.runs.empty())
    text += fmt::format(
        "  {}; not measured: a crossing at {:.0f} % of the steps is assumed, the noise of the "
        "metric is not known\n",
        lock.method, 100 * lock.crossing_progress);
  else
    text += fmt::format(
        "  {}\n  crossed at {:.1f} % of the steps; noise of the metric {:.4f} ({:.0f} degrees of "
        "freedom)\n",
        lock.method, 100 * lock.crossing_progress, lock.metric_sd, lock.metric_sd_df);
  text += flags.dry_run ? std::string("  dry run: nothing is written\n")
                        : fmt::format("  hash {}\n", lock.hash());
  out(text);
}

/// The flag that fixes the target without baselines; "" when they are needed.
/// Error{usage} for flags that then do nothing, and for a threshold that is no number above 0.
std::string fixed_by(const TrainFlags& train, const LockFlags& flags) {
  const std::string fixed = train.config.target_threshold ? "--target-threshold"
                            : flags.floor_offset          ? "--floor-offset"
                                                          : "";
  if (fixed.empty()) return fixed;
  if (train.config.target_threshold && flags.floor_offset)
    throw Error(ErrorKind::usage,
                "--target-threshold and --floor-offset: each of them fixes the target")
        .with_hint("leave one out");
  if (!flags.baseline_flags.empty())
    throw Error(ErrorKind::usage,
                fmt::format("{} and {}: the first is for baseline runs, and the second fixes the "
                            "target without any",
                            flags.baseline_flags.front(), fixed))
        .with_hint("leave one out");
  return fixed;
}

void expect_threshold(double threshold, const std::string& flag, double given) {
  if (std::isfinite(threshold) && threshold > 0.0) return;
  throw Error(ErrorKind::usage, fmt::format("{} {} makes a target of {}: expected a number above 0",
                                            flag, given, threshold))
      .with_hint("without the flag baseline runs find one: `tightloop lab lock --seeds 1,2,3`");
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

}  // namespace

int run_lock(TrainFlags& train, LockFlags& flags) {
  train.resolve();
  flags.template_name = "lock";
  const std::string folder = default_folder(flags, train.preset);
  const std::string fixed = fixed_by(train, flags);
  if (train.config.target_threshold)
    expect_threshold(*train.config.target_threshold, fixed, *train.config.target_threshold);
  Trainer trainer(train.config, train.options);
  const ValidationData validation = trainer.validation();
  TargetLock lock;
  lock.metric = train.config.target_metric;
  lock.eval_tokens = validation.tokens;
  lock.max_seq_len = trainer.plan().model.sequence_len;
  lock.data_sha256 = validation.data_sha256;
  lock.tokenizer_sha256 = validation.tokenizer_sha256;
  lock.floor = validation.floor;
  lock.crossing_progress = kExpectedProgress;
  lock.created = utc_timestamp();
  lock.command = flags.command;
  if (fs::exists(fs::path(folder) / "lock/target.json"))
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
    expect_threshold(lock.threshold, fixed, *flags.floor_offset);
    lock.method = fmt::format("floor {:.4f} + {} nats", *validation.floor, *flags.floor_offset);
  }
  if (!fixed.empty()) {
    if (!flags.dry_run) LabFolder(folder, true).set_lock(lock);
    show_lock(lock, folder, flags);
    return kDone;
  }
  Experiment e = plan_experiment(train, flags, trainer.plan(), folder);
  e.window = {.first = std::max<int64_t>(1, e.steps / 2),
              .last = e.steps,
              .every = dense_evaluations(e.steps, 1.0).every};
  const Prediction predicted = predict(trainer.plan(), e, train.config.eval_every, rows_of(folder));
  if (flags.dry_run) {
    show_plan(e, trainer.plan(), folder, predicted);
    return kDone;
  }
  LabFolder lab(folder, true);
  e = settle(lab, e);
  const int code = run_and_show(lab, e, flags);
  if (code != kDone) return code;
  lock = derive_lock(lab, e, lock);
  lab.set_lock(lock);
  show_lock(lock, folder, flags);
  return kDone;
}

}  // namespace tightloop::cli
