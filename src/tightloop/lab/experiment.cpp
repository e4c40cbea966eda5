#include "tightloop/lab/experiment.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tightloop/core/build_info.h"
#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/sha256.h"
#include "tightloop/io/host_info.h"
#include "tightloop/lab/process.h"
#include "tightloop/lab/resume_check.h"
#include "tightloop/lab/run_row.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/trainer.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kAttempts = 2;

const std::vector<std::string_view> kTemplateG{"fused-rmsnorm", "chunked-ce"};
// What the lab decides itself; a file made for `train` may say them.
const std::map<std::string_view, std::string_view> kLabOptions{
    {"run", "runs are named after their cell"},
    {"run-dir", "name the lab's folder with --lab-dir"},
    {"seed", "name the seeds of every arm with --seeds"},
    {"target-metric", "the target is fixed by `tightloop lab lock --target-metric`"},
    {"target-threshold", "the target is fixed by `tightloop lab lock --target-threshold`"},
    {"eval-window", "evaluations lie around the baseline's crossing; more of them: --eval-every"}};

bool contains(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_rewrite(const OptionSpec& spec) {
  return spec.is_switch && spec.key.starts_with("rewrite.");
}

OrderedJson to_json(const FlagValues& flags) {
  OrderedJson json = OrderedJson::object();
  for (const auto& [flag, value] : flags) json[flag] = value;
  return json;
}

FlagValues flags_of(const Json& json, const std::string& where) {
  if (!json.is_object()) fail(ErrorKind::data, "{}: an object of flags was expected", where);
  FlagValues flags;
  for (const auto& [flag, value] : json.items()) {
    if (!value.is_string()) fail(ErrorKind::data, "{}: flag '{}' is no text", where, flag);
    flags.emplace_back(flag, value.get<std::string>());
  }
  return flags;
}

OrderedJson experiment_json(const Experiment& e) {
  OrderedJson json;
  json["format"] = kExperimentFormat;
  json["name"] = e.name;
  json["command"] = e.command;
  OrderedJson arms = OrderedJson::array();
  for (const Arm& arm : e.arms)
    arms.push_back({{"name", arm.name}, {"rewrites", to_json(arm.rewrites)}});
  json["arms"] = arms;
  json["seeds"] = e.seeds;
  json["base"] = to_json(e.base);
  json["eval_window"] = to_string(e.window);
  json["steps"] = e.steps;
  json["lock_hash"] = e.lock_hash;
  json["build_hash"] = e.build_hash;
  json["verify_resume"] = e.verify_resume;
  json["silence_sec"] = e.silence_s;
  json["peak_gflops"] = e.peak_gflops;
  return json;
}

std::string switch_text(const std::string& flag, const std::string& value) {
  return (value == "true" ? "--" : "--no-") + flag;
}

}  // namespace

Experiment parse_experiment(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  if (const int64_t format = get_int(json, "format", where); format != kExperimentFormat)
    throw Error(ErrorKind::data,
                fmt::format("{}: format {}, expected {}", where, format, kExperimentFormat))
        .with_hint("another version of tightloop made it: use a new lab folder (--lab-dir)");
  Experiment e;
  e.name = get_string(json, "name", where);
  e.command = get_string(json, "command", where, "");
  for (const Json& arm : get_array(json, "arms", where))
    e.arms.push_back({get_string(arm, "name", where + ": arms"),
                      flags_of(get_object(arm, "rewrites", where + ": arms"), where)});
  for (const Json& seed : get_array(json, "seeds", where)) {
    if (!seed.is_number_integer()) fail(ErrorKind::data, "{}: seeds holds no integer", where);
    e.seeds.push_back(seed.get<int64_t>());
  }
  e.base = flags_of(get_object(json, "base", where), where);
  const std::string window = get_string(json, "eval_window", where);
  try {
    e.window = parse_eval_window(window);
  } catch (const Error& error) {
    fail(ErrorKind::data, "{}: eval_window: {}", where, error.message());
  }
  e.steps = get_int(json, "steps", where);
  e.lock_hash = get_string(json, "lock_hash", where);
  e.build_hash = get_string(json, "build_hash", where);
  e.verify_resume = get_bool(json, "verify_resume", where);
  e.silence_s = get_double(json, "silence_sec", where);
  e.peak_gflops = get_double(json, "peak_gflops", where);
  if (e.arms.empty() || e.seeds.empty()) fail(ErrorKind::data, "{}: no arms or no seeds", where);
  return e;
}

std::string Arm::flags() const {
  std::string text;
  for (const auto& [flag, value] : rewrites)
    text += (text.empty() ? "" : " ") + switch_text(flag, value);
  return text;
}

std::vector<Cell> Experiment::cells() const {
  std::vector<Cell> cells;
  for (size_t i = 0; i < seeds.size(); ++i) {
    for (size_t k = 0; k < arms.size(); ++k) {
      const Arm& a = arms[i % 2 == 0 ? k : arms.size() - 1 - k];
      cells.push_back({.name = fmt::format("{}.{}.s{}", name, a.name, seeds[i]),
                       .arm = a.name,
                       .seed = seeds[i],
                       .block = static_cast<int64_t>(i)});
    }
  }
  return cells;
}

const Arm& Experiment::arm(const std::string& arm_name) const {
  for (const Arm& a : arms) {
    if (a.name == arm_name) return a;
  }
  fail(ErrorKind::internal, "experiment {} has no arm '{}'", name, arm_name);
}

std::string Experiment::config_hash(const Arm& a) const {
  OrderedJson json;
  json["base"] = to_json(base);
  json["rewrites"] = to_json(a.rewrites);
  json["eval_window"] = to_string(window);
  json["build"] = build_hash;
  return sha256_hex(json.dump()).substr(0, 16);
}

bool Experiment::operator==(const Experiment& other) const {
  OrderedJson a = experiment_json(*this), b = experiment_json(other);
  for (OrderedJson* json : {&a, &b}) json->erase("command");
  return a == b;
}

std::vector<Arm> template_arms(const std::string& name,
                               const TrainConfig& base,
                               const Options& options) {
  FlagValues off;
  for (const auto& [rewrite, on] : base.rewrites) {
    const bool kept =
        on && options.is_set(rewrite) && (name == "AA" || !contains(kTemplateG, rewrite));
    off.emplace_back(rewrite, kept ? "true" : "false");
  }
  const auto with = [&off](std::string arm, const std::vector<std::string_view>& on) {
    FlagValues flags = off;
    for (auto& [flag, value] : flags) {
      if (contains(on, flag)) value = "true";
    }
    return Arm{std::move(arm), std::move(flags)};
  };
  if (name == "G")
    return {with("baseline", {}), with("fused-rmsnorm", {"fused-rmsnorm"}),
            with("chunked-ce", {"chunked-ce"}), with("both", kTemplateG)};
  if (name == "AA") return {with("baseline", {}), with("again", {})};
  if (name == "lock") return {with("baseline", {})};
  throw Error(ErrorKind::usage, fmt::format("there is no template '{}'", name))
      .with_hint("templates: G (the two rewrites), AA (the baseline against itself)");
}

FlagValues base_flags(const Options& options,
                      const std::string& template_name,
                      std::vector<std::string>& notes) {
  FlagValues base;
  for (const OptionSpec& spec : options.all()) {
    if (spec.origin == "default") continue;
    if (spec.flag == "resume")
      throw Error(ErrorKind::usage, "--resume is not for `lab run`: cells are resumed by the lab")
          .with_hint("`tightloop lab resume`");
    if (const auto lab = kLabOptions.find(spec.flag); lab != kLabOptions.end()) {
      const bool of_lock = template_name == "lock" && spec.flag.starts_with("target-");
      if (!of_lock && (spec.origin == "flag" || spec.origin == "--set"))
        throw Error(ErrorKind::usage,
                    fmt::format("--{} is not for the lab: it decides it itself", spec.flag))
            .with_hint(std::string(lab->second));
      if (!of_lock && !spec.origin.starts_with("preset"))
        notes.push_back(
            fmt::format("--{} (from {}) is not used: the lab decides it", spec.flag, spec.origin));
      continue;
    }
    if (is_rewrite(spec)) {
      if (template_name != "AA" && contains(kTemplateG, spec.flag))
        throw Error(ErrorKind::usage,
                    fmt::format("--{} (from {}): the arms of template G switch it, and every "
                                "baseline has it off",
                                spec.flag, spec.origin))
            .with_hint("leave it out");
      continue;  // part of every arm
    }
    std::string value = spec.get();
    if (value.empty()) continue;
    if ((spec.flag == "data" || spec.flag == "tokenizer") && fs::exists(value))
      value = fs::absolute(value).lexically_normal().string();
    base.emplace_back(spec.flag, value);
  }
  std::sort(base.begin(), base.end());
  return base;
}

std::vector<std::string> lab_decided_options(const std::string& template_name) {
  std::vector<std::string> names{"resume"};
  for (const auto& [flag, why] : kLabOptions) {
    if (template_name != "lock" || !flag.starts_with("target-")) names.emplace_back(flag);
  }
  names.insert(names.end(), kTemplateG.begin(), kTemplateG.end());
  return names;
}

std::string build_hash() {
  const BuildInfo& build = build_info();
  return sha256_hex(fmt::format("{}\n{}\n{}\n{}\n{}", build.commit, build.diff_sha256,
                                build.compiler, build.flags, build.build_type))
      .substr(0, 16);
}

// ---- folder ----

void expect_lab(const std::string& path) {
  if (fs::is_directory(fs::path(path) / "experiments")) return;
  const std::string what = fs::exists(path) ? "it has no experiments/" : "it does not exist";
  throw Error(ErrorKind::usage, fmt::format("'{}' is no lab folder: {}", path, what))
      .with_hint("`tightloop lab run G --preset quick-lab` makes one");
}

LabFolder::LabFolder(std::string path, bool exclusive) : path_(std::move(path)) {
  if (!exclusive) {
    expect_lab(path_);
  } else {
    for (const char* name : {"", "lock", "experiments", "runs", "logs", "decisions"})
      make_directories(file(name));
    try {
      held_ = std::make_unique<LockFile>(file(".lock"));
    } catch (Error& e) {
      e.with_context(fmt::format("the lab folder '{}' is in use", path_));
      e.with_hint("wait for it, or use another folder with --lab-dir");
      throw;
    }
  }
  ledger_ =
      std::make_unique<Ledger>(path_, exclusive ? Ledger::Missing::make : Ledger::Missing::empty);
}

std::string LabFolder::file(std::string_view name) const {
  return (fs::path(path_) / name).string();
}

bool LabFolder::has_lock() const {
  return fs::exists(file("lock/target.json"));
}

TargetLock LabFolder::lock() const {
  if (!has_lock())
    throw Error(ErrorKind::usage, fmt::format("'{}' has no target yet", path_))
        .with_hint("derive one from baseline runs: `tightloop lab lock -c my.toml --seeds 1,2,3`");
  return load_lock(file("lock/target.json"));
}

void LabFolder::set_lock(const TargetLock& lock) const {
  if (has_lock())
    throw Error(ErrorKind::usage,
                fmt::format("'{}' has a target already: its runs are judged by it", path_))
        .with_hint("a new target needs a new folder: --lab-dir");
  save_lock(file("lock/target.json"), lock);
}

std::vector<std::string> LabFolder::experiment_names() const {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(file("experiments"))) {
    const fs::path& path = entry.path();
    if (path.extension() == ".json") names.push_back(path.stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Experiment LabFolder::experiment(const std::string& name) const {
  const std::string path = file("experiments/" + name + ".json");
  if (!fs::exists(path))
    throw Error(ErrorKind::usage, fmt::format("'{}' has no experiment '{}'", path_, name))
        .with_hint(fmt::format("`tightloop lab status {}` lists them", path_));
  Experiment e = parse_experiment(read_file(path, 1 << 24), path);
  if (has_lock() && !e.lock_hash.empty() && lock().hash() != e.lock_hash)
    throw Error(ErrorKind::usage,
                fmt::format("experiment {} in '{}' was planned under another target than the one "
                            "that is there now",
                            name, path_))
        .with_hint("put lock/target.json back; another target needs another folder: --lab-dir");
  return e;
}

void LabFolder::save_experiment(const Experiment& experiment) const {
  write_file_atomically(file("experiments/" + experiment.name + ".json"),
                        experiment_json(experiment).dump(1) + "\n");
}

std::vector<std::string> LabFolder::runs_of(const Cell& cell) const {
  // <date>-<cell>-<id>
  std::vector<std::pair<fs::file_time_type, std::string>> found;
  if (!fs::is_directory(file("runs"))) return {};
  for (const fs::directory_entry& entry : fs::directory_iterator(file("runs"))) {
    const std::string name = entry.path().filename().string();
    const size_t a = name.find('-'), b = name.rfind('-');
    if (!entry.is_directory() || a == std::string::npos || b <= a) continue;
    if (name.substr(a + 1, b - a - 1) == cell.name)
      found.emplace_back(entry.last_write_time(), entry.path().string());
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (const auto& [time, path] : found) paths.push_back(path);
  return paths;
}

// ---- cells ----

CellState cell_state(const LabFolder& lab, const Cell& cell) {
  CellState state;
  for (LedgerRow& row : lab.ledger().rows()) {
    if (row.text("experiment_name") != cell.name) continue;
    if (row.text("detail") != kLabEnded) {
      ++state.attempts;
      if (row.text("status") != "ok" && row.text("status") != "io_error") ++state.failures;
    }
    state.row = std::move(row);
  }
  const std::string status = state.row ? state.row->text("status") : "";
  // The same seed gives the same bits, and the same flags the same plan: these would come again.
  const bool too_large =
      status == "oom" && state.row->text("detail").find(kPlanTooLarge) != std::string::npos;
  const bool certain = status == "nonfinite" || status == "config_error" || status == "diverged" ||
                       status == "resume_mismatch" || too_large;
  if (status == "ok") {
    state.kind = CellState::Kind::done;
  } else if (certain || state.failures >= kAttempts) {
    state.kind = CellState::Kind::broken;
  } else {
    for (const std::string& run : lab.runs_of(cell)) {
      if (lab.ledger().has(fs::path(run).filename().string())) continue;
      state.kind = CellState::Kind::interrupted;
      state.run_folder = run;
    }
  }
  return state;
}

std::vector<std::string> cell_arguments(const std::string& run_dir,
                                        const Experiment& experiment,
                                        const Cell& cell) {
  std::vector<std::string> arguments{"train"};
  for (const auto& [flag, value] : experiment.base) {
    if (value == "true" || value == "false") {
      arguments.push_back(switch_text(flag, value));
    } else {
      arguments.push_back("--" + flag);
      arguments.push_back(value);
    }
  }
  for (const auto& [flag, value] : experiment.arm(cell.arm).rewrites)
    arguments.push_back(switch_text(flag, value));
  for (const auto& [flag, value] :
       {std::pair<std::string, std::string>("seed", fmt::format("{}", cell.seed)),
        {"run", cell.name},
        {"run-dir", fs::absolute(run_dir).string()},
        {"eval-window", to_string(experiment.window)}}) {
    arguments.push_back("--" + flag);
    arguments.push_back(value);
  }
  if (experiment.verify_resume) {
    arguments.push_back("--save-every");
    arguments.push_back(fmt::format("{}", resume_check_step(experiment.steps)));
  }
  return arguments;
}

namespace {

/// What the lines on a cell's stdout said.
struct Heard {
  std::string run_folder;
  std::string error, error_kind;
};

void listen(
    std::string_view line, const Cell& cell, Heard& heard, LabObserver& observer, int64_t& steps) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) return;
  const std::string where = "a line of cell " + cell.name;
  const std::string event = get_string(json, "event", where, "");
  if (event == "start") {
    heard.run_folder = get_string(json, "run_folder", where);
    steps = get_int(json, "steps", where);
  } else if (event == "step") {
    observer.on_step(cell, get_int(json, "step", where) + 1, steps,
                     get_double(json, "loss", where));
  } else if (find_field(json, "error", where) != nullptr) {
    heard.error = get_string(json, "error", where);
    if (const Json* chain = find_field(json, "chain", where);
        chain != nullptr && chain->is_array() && chain->size() > 1 && chain->back().is_string())
      heard.error += ": " + chain->back().get<std::string>();
    if (const std::string hint = get_string(json, "hint", where, ""); !hint.empty())
      heard.error += "; hint: " + hint;
    heard.error_kind = get_string(json, "kind", where, "");
  }
}

/// How a child that did not end well is recorded.
Outcome outcome_of(const ChildResult& child, const Heard& heard, bool resumed) {
  if (child.timed_out) return {"timeout", "no sign of life: killed"};
  if (child.signal != 0)
    return {"killed", fmt::format("signal {} ({})", child.signal, strsignal(child.signal))};
  const std::string detail =
      heard.error.empty() ? fmt::format("exit code {}", child.exit_code) : heard.error;
  if (heard.error_kind == "oom") return {"oom", detail};
  if (heard.error_kind == "io") return {"io_error", detail};
  if (heard.error_kind == "numeric") return {"nonfinite", detail};
  if (child.exit_code == 2) return {resumed ? "resume_mismatch" : "config_error", detail};
  return {"killed", detail};
}

}  // namespace

RunCellsResult run_cells(LabFolder& lab,
                         const Experiment& experiment,
                         const std::string& program,
                         LabObserver& observer,
                         const std::atomic<bool>& stop) {
  std::optional<TargetLock> lock;
  if (!experiment.lock_hash.empty()) {
    lock = lab.lock();
    if (lock->hash() != experiment.lock_hash)
      fail(ErrorKind::usage, "experiment {} was planned under another target than that of '{}'",
           experiment.name, lab.path());
  }
  const auto record = [&](const Cell& cell, const std::string& run, int64_t attempt) {
    const bool ok = !fs::exists(fs::path(run) / "outcome.json");
    if (experiment.verify_resume && ok && !fs::exists(fs::path(run) / "resume_check.json")) {
      const auto run_to_check = [&](std::vector<std::string> arguments,
                                    const std::function<bool(std::string_view)>& on_line) {
        for (const std::string& word :
             {std::string("--json"), std::string("--with-parent"), fmt::format("{}", getpid())})
          arguments.push_back(word);
        const ChildResult result = run_child({.program = program,
                                              .arguments = std::move(arguments),
                                              .log = lab.file("logs/" + cell.name + ".log"),
                                              .silence_s = experiment.silence_s},
                                             on_line, stop);
        if (result.exit_code != 0 && stop.load())
          fail(ErrorKind::interrupted, "interrupted in a resume check");
        return result.exit_code == 0;
      };
      const auto train_to_end = [&](const std::string& folder) {
        return run_to_check({"train", "--resume", folder}, [](std::string_view) { return true; });
      };
      const auto start_again = [&](const std::string& run_dir) {
        std::string folder;
        int64_t steps = 0;
        run_to_check(cell_arguments(run_dir, experiment, cell), [&](std::string_view text) {
          const Json line = Json::parse(text, nullptr, false);
          const std::string event = line.is_object() ? get_string(line, "event", "a line", "") : "";
          if (event == "start") folder = get_string(line, "run_folder", "a line");
          if (event == "step") ++steps;
          return steps < kStartSteps;
        });
        return steps < std::min(kStartSteps, experiment.steps) ? "" : folder;
      };
      const std::string scratch = lab.file("resume-check/" + cell.name);
      check_resume(run, scratch, experiment, experiment.arm(cell.arm),
                   {.train_to_end = train_to_end, .start_again = start_again});
    }
    const LedgerRow row = row_of_run(run, experiment, cell, attempt, lock ? &*lock : nullptr);
    lab.ledger().add(row);
    observer.on_row(cell, row);
  };

  RunCellsResult result;
  const std::vector<Cell> cells = experiment.cells();
  for (size_t i = 0; i < cells.size(); ++i) {
    const Cell& cell = cells[i];
    int64_t io_errors = 0;
    while (true) {
      const CellState state = cell_state(lab, cell);
      if (state.kind == CellState::Kind::done) break;
      if (state.kind == CellState::Kind::broken) {
        ++result.broken;
        break;
      }
      if (stop.load()) {
        result.interrupted = true;
        return result;
      }
      const int64_t attempt = state.attempts + 1;
      bool resume = false;
      if (state.kind == CellState::Kind::interrupted) {
        if (has_ended(state.run_folder)) {  // the lab ended between the run and its row
          record(cell, state.run_folder, attempt);
          continue;
        }
        resume = !list_checkpoints((fs::path(state.run_folder) / "checkpoints").string()).empty();
        if (!resume) {
          write_outcome(state.run_folder, {"killed", std::string(kLabEnded)});
          record(cell, state.run_folder, attempt);
          continue;
        }
      }
      observer.on_cell(cell, static_cast<int64_t>(i), static_cast<int64_t>(cells.size()), resume);
      ChildOptions options{.program = program,
                           .log = lab.file("logs/" + cell.name + ".log"),
                           .silence_s = experiment.silence_s};
      if (resume) {
        options.arguments = {"train", "--resume", state.run_folder};
      } else {
        options.arguments = cell_arguments(lab.file("runs"), experiment, cell);
      }
      for (const std::string& word :
           {std::string("--json"), std::string("--with-parent"), fmt::format("{}", getpid())})
        options.arguments.push_back(word);
      Heard heard;
      int64_t steps = experiment.steps;
      const ChildResult child = run_child(
          options,
          [&](std::string_view line) {
            listen(line, cell, heard, observer, steps);
            return true;
          },
          stop);
      if (stop.load() && child.exit_code != 0) {  // interrupted: nothing to record yet
        result.interrupted = true;
        return result;
      }
      std::string run = resume ? state.run_folder : heard.run_folder;
      if (run.empty()) {
        const CellState after = cell_state(lab, cell);
        run = after.run_folder;
      }
      if (run.empty()) {  // it ended before it had a folder
        std::string date = utc_timestamp().substr(0, 10);
        std::erase(date, '-');
        for (int64_t n = attempt; run.empty() || fs::exists(run); ++n)
          run = lab.file(fmt::format("runs/{}-{}-failed{}", date, cell.name, n));
        make_directories(run);
      }
      if (child.exit_code == 0) {
        record(cell, run, attempt);
        continue;
      }
      const Outcome outcome = outcome_of(child, heard, resume);
      write_outcome(run, outcome);
      record(cell, run, attempt);
      if (outcome.status == "io_error" && ++io_errors == kAttempts)
        throw Error(ErrorKind::io, fmt::format("cell {}: {}", cell.name, outcome.detail))
            .with_hint(fmt::format("when files can be written again: `tightloop lab resume {}`",
                                   lab.path()));
    }
  }
  return result;
}

}  // namespace tightloop
