#include <algorithm>
#include <filesystem>

#include "tightloop/cli/lab_commands.h"
#include "tightloop/core/file.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/host_info.h"
#include "tightloop/lab/resume_check.h"
#include "tightloop/lab/statistics.h"

namespace tightloop::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kExpectedEfficiency = 0.3;  // of the peak, before anything was measured
constexpr double kExpectedStartup = 0.5;     // seconds

/// "1,2,7" or "1..10".
std::vector<int64_t> parse_seeds(const std::string& text) {
  std::vector<int64_t> seeds;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    const size_t dots = part.find("..");
    const auto refused = [&] {
      return Error(ErrorKind::usage,
                   fmt::format("--seeds '{}': '{}' is no seed or range", text, part))
          .with_hint("seeds are whole numbers from 0: `--seeds 1,2` or `--seeds 1..10`");
    };
    int64_t first = 0, last = 0;
    try {
      first = parse_integer(part.substr(0, dots));
      last = dots == std::string::npos ? first : parse_integer(part.substr(dots + 2));
    } catch (const Error&) {
      throw refused();
    }
    if (first < 0 || last < first || last - first > 10000) throw refused();
    for (int64_t s = first; s <= last; ++s) seeds.push_back(s);
    at = end + 1;
  }
  std::vector<int64_t> sorted = seeds;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    fail(ErrorKind::usage, "--seeds '{}': a seed is there twice", text);
  return seeds;
}

/// That of the experiment in the folder, or measured now.
double peak_gflops(const std::string& folder, const std::string& name, const TrainConfig& config) {
  const std::string there = (fs::path(folder) / "experiments" / (name + ".json")).string();
  if (fs::exists(there)) return parse_experiment(read_file(there, 1 << 24), there).peak_gflops;
  const Ceilings ceilings = measure_ceilings(0.4, config.device, config.dtype);
  if (const std::string warning = warning_of(ceilings); !warning.empty())
    talk("warning: " + warning + "\n");
  return ceilings.fma_gflops;
}

}  // namespace

Prediction predict(const TrainPlan& plan,
                   const Experiment& experiment,
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
    dt = static_cast<double>(plan.sizes.flops_per_token * plan.transfer.batch) /
         (1e9 * experiment.peak_gflops * kExpectedEfficiency);
    p.how = fmt::format("a guess: {:.0f} % of the {:.0f} GFLOP/s measured here",
                        100 * kExpectedEfficiency, experiment.peak_gflops);
  }
  int64_t evaluations = 0;
  for (int64_t s = 0; s <= plan.transfer.steps; ++s) {
    if (experiment.window.due(s) ||
        (eval_every > 0 && (s % eval_every == 0 || s == plan.transfer.steps)))
      ++evaluations;
  }
  const double evaluation = dt / static_cast<double>(plan.transfer.batch) / 3.0 * plan.eval_tokens;
  p.cell_s = kExpectedStartup + steps * dt + static_cast<double>(evaluations) * evaluation;
  return p;
}

std::vector<LedgerRow> rows_of(const std::string& folder) {
  if (!fs::exists(fs::path(folder) / "ledger.sqlite")) return {};
  return Ledger(folder).rows();
}

std::string default_folder(const LabFlags& flags, const std::string& preset) {
  if (!flags.lab_dir.empty()) return flags.lab_dir;
  return "lab/" + (preset.empty() ? std::string("main") : preset);
}

Experiment plan_experiment(TrainFlags& train,
                           const RunFlags& flags,
                           const TrainPlan& plan,
                           const std::string& folder) {
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
  e.peak_gflops = peak_gflops(folder, e.name, train.config);
  if (e.verify_resume && train.config.save_every > 0)
    talk(fmt::format(
        "note: --save-every {} is not used: --verify-resume saves one checkpoint before "
        "the end, at step {}\n",
        train.config.save_every, resume_check_step(e.steps)));
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
  if (e.verify_resume)
    out(fmt::format("resume check: of every cell, from a checkpoint at step {}\n",
                    resume_check_step(e.steps)));
  for (size_t i = 0; i < cells.size(); ++i) out(fmt::format("  {:>3}  {}\n", i + 1, cells[i].name));
  out(fmt::format("predicted: {:.0f} s a cell, {} in all ({})\n", predicted.cell_s,
                  duration(predicted.cell_s * static_cast<double>(cells.size())), predicted.how));
}

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

}  // namespace tightloop::cli
