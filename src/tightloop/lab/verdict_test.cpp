#include "tightloop/lab/verdict.h"

#include <cmath>
#include <random>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

constexpr double kSd = 0.0045;  // of one run, in ln

struct Lab {
  TargetLock lock{.metric = "val_loss", .threshold = 2.0};
  std::vector<LedgerRow> rows;

  void add(const std::string& experiment,
           const std::string& arm,
           int64_t seed,
           double step_ms,
           double loss,
           const std::string& status = "ok") {
    LedgerRow row;
    row.set("run_id", fmt::format("{}-{}-{}-{}", experiment, arm, seed, rows.size()));
    row.set("experiment", experiment);
    row.set("arm", arm);
    row.set("config_hash", experiment == "AA" ? std::string("same") : arm);
    row.set("seed", seed);
    row.set("lock_hash", lock.hash());
    row.set("status", status);
    if (status == "ok") {
      row.set("dt_median_ms", step_ms);
      row.set("time_to_target_sec_measured", 0.1 * step_ms);
      row.set("steps_to_target", 100.0);
      row.set("final_val_loss", loss);
    }
    rows.push_back(row);
  }
};

const std::vector<std::string> kArms{"baseline", "x"};

/// Whether each of `arms` candidates without any difference is called faster or slower.
struct Trial {
  bool faster = false, slower = false, all_lower = false;
};
Trial null_trial(std::mt19937_64& random, int seeds, int candidates) {
  std::normal_distribution<double> noise(0.0, kSd);
  std::vector<std::vector<double>> runs(static_cast<size_t>(candidates) + 1);
  for (auto& arm : runs) {
    for (int i = 0; i < seeds; ++i) arm.push_back(noise(random));
  }
  const Pool pool = pooled(runs);
  std::vector<Effect> effects;
  std::vector<double> p_faster, p_slower;
  for (size_t c = 1; c < runs.size(); ++c) {
    std::vector<double> d;
    for (size_t i = 0; i < runs[c].size(); ++i) d.push_back(runs[c][i] - runs[0][i]);
    effects.push_back(effect_of(d, pool));
    p_faster.push_back(effects.back().p_faster);
    p_slower.push_back(effects.back().p_slower);
  }
  p_faster = holm(p_faster);
  p_slower = holm(p_slower);
  Trial trial;
  for (size_t i = 0; i < effects.size(); ++i) {
    const Answer answer = answer_of(evidence_of(effects[i], p_faster[i], p_slower[i]));
    trial.faster = trial.faster || answer == Answer::faster;
    trial.slower = trial.slower || answer == Answer::slower;
  }
  trial.all_lower = effects[0].all_lower;
  return trial;
}

TEST(Verdict, NullExperimentsAreCalledFasterInAtMostFivePercent) {
  std::mt19937_64 random(1);
  for (const auto& [seeds, candidates] : {std::pair(8, 1), std::pair(3, 3), std::pair(10, 3)}) {
    int faster = 0, slower = 0;
    for (int i = 0; i < 10000; ++i) {
      const Trial trial = null_trial(random, seeds, candidates);
      faster += trial.faster ? 1 : 0;
      slower += trial.slower ? 1 : 0;
    }
    // 5 % and three standard errors of 10,000 trials.
    EXPECT_LE(faster, 500 + 66) << seeds << " seeds, " << candidates << " candidates";
    EXPECT_LE(slower, 500 + 66);
    EXPECT_GE(faster, 200);  // a rule that never says faster would pass the line above
  }
}

TEST(Verdict, TwoSeedsAloneNeverClaimAnything) {
  std::mt19937_64 random(2);
  int literal = 0;
  for (int i = 0; i < 10000; ++i) {
    const Trial trial = null_trial(random, 2, 3);  // 4 degrees of freedom
    ASSERT_FALSE(trial.faster || trial.slower);
    literal += trial.all_lower ? 1 : 0;
  }
  // "Lower on both seeds" is what identical arms do in one of four experiments.
  EXPECT_NEAR(literal, 2500, 150);
}

TEST(Verdict, PowerOfTwoSeedsWithAPoolOfTwentyDegrees) {
  std::mt19937_64 random(3);
  std::normal_distribution<double> noise(0.0, kSd);
  std::chi_squared_distribution<double> chi(20.0);
  for (const auto& [effect, low, high] :
       {std::tuple(0.01, 0.65, 0.75), std::tuple(0.02, 0.985, 1.0)}) {
    int found = 0;
    const int trials = 10000;
    for (int i = 0; i < trials; ++i) {
      const Pool pool{.sd = kSd * std::sqrt(chi(random) / 20.0), .df = 20.0};
      std::vector<double> d;
      for (int k = 0; k < 2; ++k) d.push_back(noise(random) - noise(random) - effect);
      const Effect e = effect_of(d, pool);
      if (answer_of(evidence_of(e, e.p_faster, e.p_slower)) == Answer::faster) ++found;
    }
    EXPECT_GE(found, low * trials) << effect;
    EXPECT_LE(found, high * trials) << effect;
  }
}

TEST(Verdict, FewRepeatsAreSuggestiveAtMost) {
  Lab lab;
  for (int64_t s = 1; s <= 2; ++s) {
    lab.add("G", "baseline", s, 10.0 + 0.001 * static_cast<double>(s), 1.5);
    lab.add("G", "x", s, 8.0 + 0.001 * static_cast<double>(s), 1.5);
  }
  const ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.step_time.noise.df, 2.0);
  EXPECT_EQ(v.evidence, Evidence::suggestive);
  EXPECT_EQ(v.answer, Answer::inconclusive);
  EXPECT_EQ(verdict_word(v), "INCONCLUSIVE (suggestive)");
  EXPECT_EQ(headline({v}, "G"), "x 20.0 % less time per step (suggestive, 2 seeds)");
  EXPECT_NE(v.text.find("unfused reference"), std::string::npos);
  EXPECT_NE(v.text.find("1 in 4"), std::string::npos);

  // Repeats of the same lab folder name the noise: then two seeds are enough for 20 %.
  for (int64_t s = 1; s <= 4; ++s) {
    for (const char* arm : {"baseline", "again"})
      lab.add("AA", arm, s, 10.0 + 0.01 * static_cast<double>(s % 3),
              1.5 + 0.01 * static_cast<double>(s));
  }
  const ArmVerdict with = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(with.step_time.noise.df, 9.0);  // 2, and 8 repeats of one configuration
  EXPECT_EQ(with.evidence, Evidence::strong);
  EXPECT_EQ(with.answer, Answer::faster);
  EXPECT_NEAR(with.step_time.mean, std::log(0.8), 0.001);
}

TEST(Verdict, TheDecisionHasPairedTAndWelch) {
  Lab lab;
  const double reference[] = {1.0, 1.1, 1.2}, candidate[] = {0.9, 1.05, 1.0};
  for (int64_t s = 0; s < 3; ++s) {
    lab.add("G", "baseline", s, std::exp(reference[s]), 1.5);
    lab.add("G", "x", s, std::exp(candidate[s]), 1.5);
  }
  const OrderedJson json = to_json(judge(lab.rows, "G", kArms, lab.lock).at(0));
  // d = -0.1, -0.05, -0.2: t = -sqrt(7); with 2 degrees of freedom p = 1/2 + t / (2 sqrt(2 + t²)).
  const OrderedJson& time = json["time_per_step"];
  EXPECT_NEAR(time["paired_t"]["t"].get<double>(), -std::sqrt(7.0), 1e-9);
  EXPECT_EQ(time["paired_t"]["df"], 2.0);
  EXPECT_NEAR(time["paired_t"]["p_lower"].get<double>(), 0.5 - std::sqrt(7.0) / 6.0, 1e-9);
  EXPECT_NEAR(time["welch"]["t"].get<double>(), -1.605910, 1e-5);
  EXPECT_NEAR(time["welch"]["df"].get<double>(), 3.740934, 1e-4);
  EXPECT_NEAR(time["welch"]["p_two_sided"].get<double>(), 2.0 * student_t_cdf(-1.605910, 3.740934),
              1e-5);
  EXPECT_EQ(time["sign_probability"], 0.125);
  EXPECT_FALSE(json["loss"].contains("paired_t"));  // no spread, no answer
}

TEST(Verdict, TheHeadlineIsOneShortSentence) {
  const auto verdict = [](std::string arm, double ln, Answer answer, Evidence evidence) {
    ArmVerdict v{.arm = std::move(arm), .evidence = evidence, .answer = answer};
    v.step_time.mean = ln;
    v.step_time.pairs = 2;
    return v;
  };
  const ArmVerdict a = verdict("a", -0.001, Answer::inconclusive, Evidence::none),
                   b = verdict("b", -0.02, Answer::inconclusive, Evidence::suggestive),
                   c = verdict("c", 0.003, Answer::inconclusive, Evidence::none),
                   d = verdict("d", -0.05, Answer::inconclusive, Evidence::suggestive),
                   f = verdict("f", -0.1, Answer::faster, Evidence::strong),
                   s = verdict("s", 0.1, Answer::slower, Evidence::harmful);
  EXPECT_EQ(headline({a, b, c}, "G"),
            "b 2.0 % less time per step (suggestive, 2 seeds); the others: no difference shown");
  EXPECT_EQ(headline({a, b, d}, "G"),
            "b 2.0 %, d 4.9 % less time per step (suggestive, 2 seeds); a: no difference shown");
  EXPECT_EQ(headline({f, s}, "G"),
            "f 9.5 % less time per step (FASTER, 2 seeds); s 10.5 % more time per step (SLOWER, "
            "2 seeds)");
  EXPECT_EQ(headline({a, c}, "G"), "a, c: no difference shown (2 seeds)");
  EXPECT_EQ(headline({ArmVerdict{.arm = "a"}}, "G"), "a: no pair of finished runs");
  EXPECT_EQ(headline({a}, "AA"),
            "a: no difference shown (2 seeds); both arms are the same, so a difference is noise");
  ArmVerdict loss = b;
  loss.evidence = Evidence::strong;
  loss.loss.result = LossCheck::Result::differs;
  EXPECT_EQ(headline({loss}, "G"), "b 2.0 % less time per step (but its loss differs, 2 seeds)");
}

TEST(Verdict, SlowerIsAnAnswerToo) {
  Lab lab;
  for (int64_t s = 1; s <= 6; ++s) {
    const double jitter = 0.02 * static_cast<double>(s % 3);
    lab.add("G", "baseline", s, 10.0 + jitter, 1.5 + jitter);
    lab.add("G", "x", s, 11.0 + jitter, 1.5 + jitter);
  }
  const ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.answer, Answer::slower);
  EXPECT_EQ(v.evidence, Evidence::harmful);
}

TEST(Verdict, ARewriteThatMovesTheLossIsNotCalledFaster) {
  Lab lab;
  for (int64_t s = 1; s <= 8; ++s) {
    const double jitter = 0.01 * static_cast<double>(s % 3);
    lab.add("G", "baseline", s, 10.0 + jitter, 1.5 + 0.1 * jitter);
    lab.add("G", "x", s, 9.0 + jitter, 1.8 + 0.1 * jitter);
  }
  const ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.loss.result, LossCheck::Result::differs);
  EXPECT_EQ(v.answer, Answer::inconclusive);
  EXPECT_NE(v.text.find("LOSS DIFFERS"), std::string::npos);
}

TEST(Verdict, FailedRunsBreakTheirPair) {
  Lab lab;
  for (int64_t s = 1; s <= 3; ++s) {
    lab.add("G", "baseline", s, 10.0, 1.5);
    lab.add("G", "x", s, 9.0, 1.5, s == 2 ? "killed" : "ok");
  }
  const ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.step_time.pairs, 2);
  EXPECT_EQ(v.broken_pairs, 1);
  lab.add("G", "x", 2, 9.0, 1.5);  // the repeat went well
  EXPECT_EQ(judge(lab.rows, "G", kArms, lab.lock).at(0).broken_pairs, 0);
}

TEST(Verdict, ACandidateThatDivergesIsNotCalledFaster) {
  Lab lab;
  for (int64_t s = 1; s <= 9; ++s) {
    const double jitter = 0.01 * static_cast<double>(s % 3);
    lab.add("G", "baseline", s, 10.0 + jitter, 1.5 + jitter);
    lab.add("G", "x", s, 9.0 + jitter, 1.5 + jitter, s == 9 ? "diverged" : "ok");
  }
  ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.evidence, Evidence::strong);
  EXPECT_EQ(v.answer, Answer::inconclusive);
  EXPECT_EQ(v.unstable_pairs, 1);
  EXPECT_NE(v.text.find("UNSTABLE"), std::string::npos);
  EXPECT_NE(headline({v}, "G").find("a run of it diverged"), std::string::npos);
  lab.rows.back().set("status", "killed");  // what the machine did is not the candidate's fault
  v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.answer, Answer::faster);
}

TEST(Verdict, NothingMeasuredIsInconclusive) {
  const Lab lab;
  const ArmVerdict v = judge(lab.rows, "G", kArms, lab.lock).at(0);
  EXPECT_EQ(v.answer, Answer::inconclusive);
  EXPECT_EQ(v.evidence, Evidence::none);
}

TEST(Verdict, RunsUnderAnotherTargetAreRefused) {
  Lab lab;
  lab.add("G", "baseline", 1, 10.0, 1.5);
  lab.lock.threshold = 1.9;
  EXPECT_THROW(judge(lab.rows, "G", kArms, lab.lock), Error);
}

}  // namespace
}  // namespace tightloop
