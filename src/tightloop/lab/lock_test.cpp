#include "tightloop/lab/lock.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

/// A curve that falls like a training run: 2 + 3 exp(-4 p), shifted by `shift`.
BaselineCurve baseline(const std::string& id, double shift) {
  BaselineCurve curve{.run_id = id, .steps = 200, .points = {}};
  for (int64_t s = 0; s <= 200; s += 2) {
    const double p = static_cast<double>(s) / 200.0;
    curve.points.push_back({.step = s,
                            .metric = 2.0 + 3.0 * std::exp(-4.0 * p) + shift,
                            .train_sec = 10.0 * p,
                            .nanochat_sec = 10.0 * p,
                            .process_sec = 12.0 * p});
  }
  return curve;
}

TEST(Lock, ThresholdIsCrossedByEveryBaselineInTheLastThird) {
  const LockDerivation d = derive_threshold(std::vector<BaselineCurve>{
      baseline("a", 0.0), baseline("b", 0.0004), baseline("c", -0.0004)});
  EXPECT_EQ(d.checks.size(), 3u);
  for (const LockCheck& check : d.checks) {
    EXPECT_GE(check.progress, kLockEarliest);
    EXPECT_LE(check.progress, kLockLatest);
    EXPECT_LE(check.noise_share, kLockNoise);
  }
  EXPECT_TRUE(d.quiet);
  EXPECT_NEAR(d.offset, kLockOffset, 0.03);
  EXPECT_NEAR(d.metric_sd, 0.0004, 1e-5);
  EXPECT_EQ(d.metric_sd_df, 2.0);
}

TEST(Lock, NoiseThatNoOffsetCuresIsSaid) {
  const LockDerivation d =
      derive_threshold(std::vector<BaselineCurve>{baseline("a", 0.0), baseline("b", 0.03)});
  EXPECT_FALSE(d.quiet);
  EXPECT_GE(d.checks.at(0).progress, kLockEarliest);
}

TEST(Lock, ImpossibleTargetsAreErrors) {
  EXPECT_THROW(derive_threshold(std::vector<BaselineCurve>{baseline("a", 0.0)}), Error);
  // One of the two never comes near the other.
  EXPECT_THROW(derive_threshold(std::vector<BaselineCurve>{baseline("a", 0.0), baseline("b", 5.0)}),
               Error);
}

TEST(Lock, DenseEvaluationsLieAroundTheCrossing) {
  const EvalWindow window = dense_evaluations(1500, 0.8);
  EXPECT_EQ(window.every, 12);
  EXPECT_EQ(window.first, 900);
  EXPECT_EQ(window.last, 1440);
  EXPECT_EQ(dense_evaluations(60, 0.9).every, 1);
  EXPECT_EQ(dense_evaluations(60, 0.9).last, 60);
  EXPECT_EQ(dense_evaluations(1, 0.9).first, 1);
}

TEST(Lock, FileIsRefusedWhenItWasEdited) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("tl-lock-{}", ::getpid());
  fs::create_directories(folder);
  const std::string path = (folder / "target.json").string();
  const TargetLock lock{.metric = "val_loss",
                        .threshold = 1.2345678901234567,
                        .eval_tokens = 4096,
                        .max_seq_len = 512,
                        .data_sha256 = "ab",
                        .tokenizer_sha256 = "cd",
                        .floor = 0.61,
                        .metric_sd = 0.01,
                        .metric_sd_df = 3,
                        .crossing_progress = 0.8,
                        .method = "given",
                        .runs = {"r1", "r2"},
                        .created = "2026-01-01T00:00:00Z"};
  save_lock(path, lock);
  const TargetLock back = load_lock(path);
  EXPECT_EQ(back.hash(), lock.hash());
  EXPECT_EQ(back.threshold, lock.threshold);
  EXPECT_EQ(back.runs, lock.runs);
  EXPECT_EQ(back.max_seq_len, 512);
  TargetLock other = lock;
  other.threshold = 1.0;
  EXPECT_EQ(other.eval_hash(), lock.eval_hash());
  EXPECT_NE(other.hash(), lock.hash());
  other.max_seq_len = 256;
  EXPECT_NE(other.eval_hash(), lock.eval_hash());
  std::string text = read_file(path);
  text.replace(text.find("1.23"), 4, "1.33");
  std::ofstream(path) << text;
  EXPECT_THROW(load_lock(path), Error);
  std::ofstream(path) << "{}";
  EXPECT_THROW(load_lock(path), Error);
  std::ofstream(path) << R"({"format": 1, "metric": "val_loss"})";
  try {
    load_lock(path);
    FAIL() << "a lock of an older format was read";
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("format 1, expected 2"), std::string::npos) << error.what();
    EXPECT_NE(error.hint().find("--lab-dir"), std::string::npos);
  }
  fs::remove_all(folder);
}

TEST(Lock, AnotherEvaluationIsRefusedNamingBothValues) {
  const TargetLock lock{
      .eval_tokens = 4096, .max_seq_len = 512, .data_sha256 = "ab", .tokenizer_sha256 = "cd"};
  const ValidationData same{.data_sha256 = "ab", .tokenizer_sha256 = "cd", .tokens = 4096};
  EXPECT_NO_THROW(expect_same_evaluation(lock, same, 512, "lab/x"));
  const auto refusal = [&lock](const ValidationData& run, int64_t max_seq_len) -> std::string {
    try {
      expect_same_evaluation(lock, run, max_seq_len, "lab/x");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_NE(error.hint().find("`tightloop lab lock --lab-dir lab/x-2"), std::string::npos);
      return error.message();
    }
    return "not refused";
  };
  EXPECT_NE(refusal(same, 256).find("--max-seq-len 512, and this run has 256"), std::string::npos);
  ValidationData other = same;
  other.tokens = 2048;
  EXPECT_NE(refusal(other, 512).find("--eval-tokens 4096, and this run has 2048"),
            std::string::npos);
  other = same;
  other.data_sha256 = "ef";
  EXPECT_NE(refusal(other, 512).find("ab, and this run has ef"), std::string::npos);
  other = same;
  other.tokenizer_sha256 = "gh";
  EXPECT_NE(refusal(other, 512).find("cd, and this run has gh"), std::string::npos);
}

}  // namespace
}  // namespace tightloop
