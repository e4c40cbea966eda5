#include "tightloop/train/trainer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/allocation_testing.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/train/data/synth.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> tokens_of(const fs::path& shard) {
  const TokenShard from(shard.string());
  std::vector<int32_t> tokens(static_cast<size_t>(from.count()));
  from.copy(0, tokens);
  return tokens;
}

void write_shard(const fs::path& path, std::span<const int32_t> tokens) {
  TokenShardWriter writer(path.string(), 60000);
  writer.append(tokens);
  writer.finish();
}

class TrainerStep : public ::testing::TestWithParam<Packing> {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("tl-trainer-{}", static_cast<int>(getpid()));
    fs::remove_all(folder_);
    make_corpus({.folder = data(), .train_tokens = 10'000, .val_tokens = 2'000});
    if (GetParam() == Packing::in_order) return;
    // The same stories without their floor, in two shards; or as one book.
    for (const fs::path name : {"train_000000.bin", "val_000000.bin"}) {
      const fs::path path = data() / name;
      std::vector<int32_t> tokens = tokens_of(path);
      fs::remove(floor_path(path.string()));
      if (GetParam() == Packing::contiguous)
        std::replace(tokens.begin() + 1, tokens.end(), tokens[0], tokens[1]);
      const std::span<const int32_t> all(tokens);
      const size_t middle = static_cast<size_t>(
          std::find(tokens.begin() + std::ssize(tokens) / 2, tokens.end(), tokens[0]) -
          tokens.begin());
      write_shard(path, all.first(middle));
      if (middle < all.size())
        write_shard(data() / (name.stem().string() + "1.bin"), all.subspan(middle));
    }
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path data() const { return folder_ / "data"; }

  fs::path folder_;
};

class CountAllocations : public TrainObserver {
 public:
  explicit CountAllocations(size_t steps) { at_step.reserve(steps); }
  void on_plan(const TrainPlan& plan) override { packing = plan.packing; }
  void on_step(const StepReport&) override { at_step.push_back(allocations_made); }

  std::vector<int64_t> at_step;  // so far
  std::optional<Packing> packing;
};

class LosesTheDevice : public TrainObserver {
 public:
  void on_step(const StepReport& report) override {
    if (report.record.step == 4) fail(ErrorKind::device, "CUDA: the device is gone");
  }
};

TrainConfig tiny_run(const fs::path& folder, const fs::path& data) {
  TrainConfig config;
  config.data = data;
  config.run_dir = folder / "runs";
  config.depth = 1;
  config.aspect_ratio = 32;
  config.head_dim = 16;
  config.max_seq_len = 32;
  config.device_batch_size = 4;
  config.total_batch_size = 256;
  config.warmup_steps = 2;
  config.eval_tokens = 128;
  config.eval_every = config.sample_every = config.save_every = -1;
  config.data_seed = 1;
  config.threads = 2;
  return config;
}

// From one report of a step to the next lie the loader and its thread, the Programs, the
// hyperparameters, the history and the record with its writer thread.
TEST_P(TrainerStep, AllocatesNothing) {
  constexpr size_t kWarm = 50, kSteps = 80;  // an epoch has about 40 steps
  TrainConfig config = tiny_run(folder_, data());
  Options options;
  declare_train_options(options, config);
  config.num_iterations = kSteps;
  CountAllocations seen(kSteps);
  const TrainResult result = Trainer(config, options).run(seen, {false});
  ASSERT_EQ(seen.packing, GetParam());
  ASSERT_EQ(seen.at_step.size(), kSteps);
  EXPECT_EQ(seen.at_step[0] > 0, kCountsAllocations);
  for (size_t i = kWarm; i < kSteps; ++i)
    EXPECT_EQ(seen.at_step[i] - seen.at_step[i - 1], 0) << "step " << i;

  const Json summary = read_json((fs::path(result.run_folder) / "summary.json").string());
  for (const char* made :
       {"plans_made_in_steps", "programs_bound_in_steps", "blocks_made_in_steps"})
    EXPECT_EQ(summary.at(made), 0) << made;
  EXPECT_EQ(summary.at("counted_steps_of_process"), kSteps - 11);
  EXPECT_GT(summary.at("programs_bound"), 0);
}

TEST_P(TrainerStep, ALostDeviceNamesTheCheckpointToContinueFrom) {
  TrainConfig config = tiny_run(folder_, data());
  Options options;
  declare_train_options(options, config);
  config.num_iterations = 8;
  config.save_every = 2;
  LosesTheDevice observer;
  try {
    Trainer(config, options).run(observer, {false});
    ADD_FAILURE() << "it went on";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::device);
    EXPECT_EQ(e.message(), "CUDA: the device is gone");
    EXPECT_NE(e.chain().front().find("training stopped at step 4; continue from step_000004 with "
                                     "`tightloop train --resume "),
              std::string::npos)
        << e.chain().front();
  }
  std::ifstream rows(fs::path(config.run_dir) / "results.csv");
  std::string last;
  for (std::string row; std::getline(rows, row);) last = row;
  EXPECT_TRUE(last.ends_with(",killed")) << last;
}

INSTANTIATE_TEST_SUITE_P(Packings,
                         TrainerStep,
                         ::testing::Values(Packing::in_order,
                                           Packing::best_fit,
                                           Packing::contiguous),
                         [](const auto& test) {
                           std::string name(name_of(test.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace tightloop
