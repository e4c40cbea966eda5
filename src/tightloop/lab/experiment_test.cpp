#include "tightloop/lab/experiment.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/lab/process.h"
#include "tightloop/lab/resume_check.h"
#include "tightloop/lab/run_row.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

struct Train {
  TrainConfig config;
  Options options;
  Train() { declare_train_options(options, config); }
};

Experiment experiment() {
  const Train train;
  return {.name = "G",
          .arms = template_arms("G", train.config, train.options),
          .seeds = {1, 2, 3},
          .base = {{"depth", "2"}},
          .window = {.first = 30, .last = 40, .every = 1},
          .steps = 40,
          .lock_hash = "l",
          .build_hash = "b",
          .peak_gflops = 100.0,
          .command = "tightloop lab run G"};
}

std::string value_of(const Arm& arm, const std::string& flag) {
  for (const auto& [name, value] : arm.rewrites) {
    if (name == flag) return value;
  }
  return "missing";
}

TEST(Experiment, TemplateGSaysEveryRewriteOfEveryArm) {
  Train train;
  const std::vector<Arm> arms = template_arms("G", train.config, train.options);
  ASSERT_EQ(arms.size(), 4u);
  for (const Arm& arm : arms) {
    EXPECT_EQ(arm.rewrites.size(), train.config.rewrites.size()) << arm.name;
    EXPECT_EQ(value_of(arm, "fused-relu2"), "false");
  }
  EXPECT_EQ(value_of(arms[0], "fused-rmsnorm"), "false");
  EXPECT_EQ(value_of(arms[0], "chunked-ce"), "false");
  EXPECT_EQ(value_of(arms[1], "fused-rmsnorm"), "true");
  EXPECT_EQ(value_of(arms[2], "chunked-ce"), "true");
  EXPECT_EQ(value_of(arms[2], "fused-rmsnorm"), "false");
  EXPECT_EQ(value_of(arms[3], "fused-rmsnorm"), "true");
  EXPECT_EQ(value_of(arms[3], "chunked-ce"), "true");
  // Another rewrite that was asked for is on in all arms.
  train.options.set("fused-relu2", "true", "flag");
  for (const Arm& arm : template_arms("G", train.config, train.options))
    EXPECT_EQ(value_of(arm, "fused-relu2"), "true");
  EXPECT_THROW(template_arms("Q", train.config, train.options), Error);
}

TEST(Experiment, OrderIsReversedAtEveryOtherSeed) {
  std::vector<std::string> names;
  for (const Cell& cell : experiment().cells()) names.push_back(cell.name);
  EXPECT_EQ(names, (std::vector<std::string>{
                       "G.baseline.s1", "G.fused-rmsnorm.s1", "G.chunked-ce.s1", "G.both.s1",
                       "G.both.s2", "G.chunked-ce.s2", "G.fused-rmsnorm.s2", "G.baseline.s2",
                       "G.baseline.s3", "G.fused-rmsnorm.s3", "G.chunked-ce.s3", "G.both.s3"}));
}

TEST(Experiment, ConfigHashIsOfTheArmNotOfItsName) {
  Experiment e = experiment();
  EXPECT_NE(e.config_hash(e.arms[0]), e.config_hash(e.arms[1]));
  Arm again = e.arms[0];
  again.name = "again";
  EXPECT_EQ(e.config_hash(e.arms[0]), e.config_hash(again));
  const std::string before = e.config_hash(again);
  e.base.emplace_back("lr-mult", "0.5");
  EXPECT_NE(e.config_hash(again), before);
}

TEST(Experiment, BaseFlagsLeaveOutWhatTheLabDecides) {
  Train train;
  train.options.set("depth", "3", "flag");
  train.options.set("seed", "7", "my.toml:3:1");
  train.options.set("fused-relu2", "true", "flag");
  std::vector<std::string> notes;
  const FlagValues base = base_flags(train.options, "G", notes);
  EXPECT_EQ(base, (FlagValues{{"depth", "3"}}));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("--seed"), std::string::npos);
  train.options.set("chunked-ce", "true", "flag");
  EXPECT_THROW(base_flags(train.options, "G", notes), Error);
  EXPECT_THROW(base_flags(train.options, "lock", notes), Error);
  EXPECT_NO_THROW(base_flags(train.options, "AA", notes));
  EXPECT_EQ(value_of(template_arms("AA", train.config, train.options)[1], "chunked-ce"), "true");
  train.options.set("resume", "runs/x", "flag");
  EXPECT_THROW(base_flags(train.options, "AA", notes), Error);
}

TEST(Experiment, FlagsThatTheLabDecidesAreRefused) {
  std::vector<std::string> notes;
  for (const std::string flag : {"run", "run-dir", "seed", "eval-window", "target-threshold"}) {
    Train train;
    train.options.set(flag, flag == "eval-window" ? "1:2:1" : "3", "flag");
    EXPECT_THROW(base_flags(train.options, "G", notes), Error) << flag;
    const auto hidden = lab_decided_options("G");
    EXPECT_NE(std::find(hidden.begin(), hidden.end(), flag), hidden.end()) << flag;
  }
  Train train;  // the target of a lock is what a lock is told
  train.options.set("target-threshold", "3", "flag");
  EXPECT_NO_THROW(base_flags(train.options, "lock", notes));
}

class LabFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("tl-lab-{}", ::getpid());
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_F(LabFolderTest, ExperimentsComeBackAsTheyWere) {
  const LabFolder lab(folder_.string(), true);
  const Experiment e = experiment();
  lab.save_experiment(e);
  EXPECT_EQ(lab.experiment_names(), std::vector<std::string>{"G"});
  EXPECT_TRUE(lab.experiment("G") == e);
  Experiment other = e;
  other.seeds.push_back(4);
  EXPECT_FALSE(other == e);
  EXPECT_THROW(lab.experiment("AA"), Error);
  EXPECT_THROW(LabFolder(folder_.string(), true), Error);  // held
  EXPECT_THROW(LabFolder((folder_ / "none").string(), false), Error);
  std::ofstream(folder_ / "experiments/G.json") << R"({"name": "G", "arms": [1]})";
  EXPECT_THROW(lab.experiment("G"), Error);
}

TEST_F(LabFolderTest, RunsOfACellAreFoundByTheirWholeName) {
  const LabFolder lab(folder_.string(), true);
  for (const char* name : {"20260101-G.both.s1-0a1b2c", "20260101-G.both.s11-0a1b2c",
                           "20260101-G.chunked-ce.s1-ffffff", "results.csv"})
    fs::create_directories(folder_ / "runs" / name);
  EXPECT_EQ(lab.runs_of({.name = "G.both.s1"}).size(), 1u);
  EXPECT_EQ(lab.runs_of({.name = "G.chunked-ce.s1"}).size(), 1u);
  EXPECT_EQ(lab.runs_of({.name = "G.baseline.s1"}).size(), 0u);
}

TEST_F(LabFolderTest, StateOfACellFollowsFromItsRows) {
  LabFolder lab(folder_.string(), true);
  const Cell cell{.name = "G.both.s1", .arm = "both", .seed = 1};
  const auto state = [&] { return cell_state(lab, cell).kind; };
  int next = 0;
  const auto add = [&](const char* status, std::string_view detail) {
    LedgerRow row;
    row.set("run_id", fmt::format("r{}", next++));
    row.set("experiment_name", cell.name);
    row.set("status", status);
    row.set("detail", std::string(detail));
    lab.ledger().add(row);
  };
  EXPECT_EQ(state(), CellState::Kind::pending);
  for (int i = 0; i < 5; ++i) add("killed", kLabEnded);                    // no fault of the cell
  for (int i = 0; i < 5; ++i) add("io_error", "no space left on device");  // nor these
  EXPECT_EQ(state(), CellState::Kind::pending);
  add("killed", "signal 11");
  EXPECT_EQ(state(), CellState::Kind::pending);
  add("timeout", "no sign of life");
  EXPECT_EQ(state(), CellState::Kind::broken);
  add("ok", "");
  EXPECT_EQ(state(), CellState::Kind::done);
}

TEST_F(LabFolderTest, AClockThatJumpsBackDoesNotMatter) {
  LabFolder lab(folder_.string(), true);
  const Cell cell{.name = "G.both.s1", .arm = "both", .seed = 1};
  const auto add = [&](const char* id, const char* status, const char* time) {
    LedgerRow row;
    row.set("run_id", id);
    row.set("experiment_name", cell.name);
    row.set("timestamp", time);
    row.set("finished", time);
    row.set("status", status);
    lab.ledger().add(row);
  };
  add("r0", "timeout", "2026-06-01T12:00:00Z");
  add("r1", "ok", "1970-01-01T00:00:01Z");
  EXPECT_EQ(cell_state(lab, cell).kind, CellState::Kind::done);
  EXPECT_EQ(cell_state(lab, cell).row->text("run_id"), "r1");
  // A folder that seems older than those before it is still what is continued.
  const Cell open{.name = "G.both.s2", .arm = "both", .seed = 2};
  const fs::path run = folder_ / "runs/19700101-G.both.s2-000001";
  fs::create_directories(run);
  fs::last_write_time(run, fs::file_time_type::clock::now() + std::chrono::hours(1000));
  EXPECT_EQ(cell_state(lab, open).kind, CellState::Kind::interrupted);
  EXPECT_EQ(cell_state(lab, open).run_folder, run.string());
}

TEST_F(LabFolderTest, AFolderWithNothingInItIsAKilledRun) {
  const LabFolder lab(folder_.string(), true);
  const Experiment e = experiment();
  const Cell cell = e.cells()[0];
  const fs::path run = folder_ / "runs/20260101-G.baseline.s1-000001";
  fs::create_directories(run);
  EXPECT_FALSE(has_ended(run.string()));
  const LedgerRow row = row_of_run(run.string(), e, cell, 1, nullptr);
  EXPECT_EQ(row.text("status"), "killed");
  EXPECT_EQ(row.text("detail"), kLabEnded);
  EXPECT_EQ(row.text("arm"), "baseline");
  EXPECT_EQ(row.text("dt_median_ms"), "");
  for (const char* name : {"evals.csv", "steps.bin", "summary.json"}) std::ofstream(run / name);
  EXPECT_EQ(row_of_run(run.string(), e, cell, 1, nullptr).text("status"), "killed");
  EXPECT_TRUE(measured_points(run.string(), "val_loss").empty());
  write_outcome(run.string(), {"oom", "cannot allocate 1 TiB"});
  EXPECT_TRUE(has_ended(run.string()));
  EXPECT_EQ(row_of_run(run.string(), e, cell, 1, nullptr).text("status"), "oom");
}

TEST(ResumeCheck, StartsNearTheEndAndOnlyOnce) {
  for (const int64_t steps : {2, 3, 7, 40, 80, 81, 1000, 100000}) {
    const int64_t from = resume_check_step(steps);
    EXPECT_GE(from, 1);
    EXPECT_LT(from, steps);
    EXPECT_GT(2 * from, steps - 1) << "--save-every saves it once before the end";
  }
  EXPECT_EQ(resume_check_step(1000), 980);
}

class ProcessTest : public LabFolderTest {
 protected:
  ChildResult run(const std::string& script, double silence = 0.0) {
    fs::create_directories(folder_);
    lines_.clear();
    return run_child(
        {.program = "/bin/sh",
         .arguments = {"-c", script},
         .log = (folder_ / "log").string(),
         .silence_s = silence},
        [this](std::string_view line) {
          lines_.emplace_back(line);
          return line != enough_;
        },
        stop_);
  }
  std::vector<std::string> lines_;
  std::string enough_ = "enough";
  std::atomic<bool> stop_{false};
};

TEST_F(ProcessTest, LinesLogAndExitCode) {
  const ChildResult r = run("echo one; echo two; echo talk >&2; printf rest; exit 7");
  EXPECT_EQ(r.exit_code, 7);
  EXPECT_EQ(lines_, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(read_file((folder_ / "log").string()), "talk\n");
}

TEST_F(ProcessTest, ThreadsOfAChildWaitPassivelyUnlessTheUserSaid) {
  const std::string ask = "echo ${OMP_WAIT_POLICY-none} ${GOMP_SPINCOUNT-none}";
  for (const auto& [name, value, heard] :
       {std::tuple("OMP_WAIT_POLICY", "active", "active none"),
        std::tuple("GOMP_SPINCOUNT", "1000", "none 1000"), std::tuple("", "", "passive none")}) {
    ::unsetenv("OMP_WAIT_POLICY");
    ::unsetenv("GOMP_SPINCOUNT");
    if (*name != '\0') ::setenv(name, value, 1);
    run(ask);
    EXPECT_EQ(lines_, std::vector<std::string>{heard});
  }
}

TEST_F(ProcessTest, SignalsAndSilenceAreTold) {
  EXPECT_EQ(run("kill -11 $$").signal, 11);
  const ChildResult hung = run("echo begun; sleep 100", 0.2);
  EXPECT_TRUE(hung.timed_out);
  EXPECT_EQ(hung.signal, 9);
  EXPECT_EQ(lines_.size(), 1u);
}

TEST_F(ProcessTest, StopIsPassedOnOnce) {
  stop_ = true;
  const ChildResult r = run("trap 'echo stopping; exit 130' TERM; while :; do sleep 0.05; done");
  // The signal may come before the trap is set.
  EXPECT_TRUE(r.exit_code == 130 || r.signal == 15) << r.exit_code << " " << r.signal;
}

TEST_F(ProcessTest, ALineCanBeEnough) {
  const ChildResult r =
      run("trap 'exit 130' TERM; echo one; echo enough; while :; do sleep 0.05; done");
  EXPECT_EQ(r.exit_code, 130);
  EXPECT_EQ(lines_, (std::vector<std::string>{"one", "enough"}));
}

TEST_F(ProcessTest, AProgramThatIsNotThereIsAnError) {
  fs::create_directories(folder_);
  EXPECT_THROW(run_child(
                   {.program = "/nonexistent/program", .log = (folder_ / "log").string()},
                   [](std::string_view) { return true; }, stop_),
               Error);
}

}  // namespace
}  // namespace tightloop
