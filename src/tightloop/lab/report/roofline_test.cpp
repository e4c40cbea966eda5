#include "tightloop/lab/report/roofline.h"

#include <algorithm>
#include <map>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

/// A model of two small layers, in two micro-steps a step.
class Roofline : public testing::Test {
 protected:
  Roofline() {
    plan_.model = nanochat_from_depth(Recipe::nanochat_2026_07, 2, 16, 16, 32, 50, "L");
    std::vector<NamedShape> shapes;
    for (const NanochatParameter& p : nanochat_parameters(plan_.model))
      shapes.push_back({p.name, p.shape});
    plan_.groups = nanochat_groups(plan_.model.recipe, shapes, plan_.model.n_embd,
                                   default_rates(plan_.model.recipe), 1.0, 0.1);
    plan_.micro_steps = 2;
  }

  TrainPrograms build(const std::vector<std::string>& rewrites) const {
    return build_train_programs({.model = plan_.model, .batch = 2, .rewrites = rewrites},
                                plan_.groups);
  }

  /// Both arms, profiled once for all tests: measuring the ceilings takes a second.
  const StepProfile& profile() {
    static const StepProfile kProfile = [&] {
      const TrainPrograms plain = build({}), fused = build({"fused-rmsnorm", "chunked-ce"});
      return profile_step({{"plain", &plain}, {"fused", &fused}}, plan_, 2, [&] { ++stops_; });
    }();
    return kProfile;
  }

  TrainPlan plan_;
  static inline int stops_ = 0;
};

const RooflinePoint& find(const StepProfile& profile,
                          const std::string& arm,
                          const std::string& name,
                          const std::string& phase) {
  for (const RooflinePoint& p : profile.points) {
    if (p.arm == arm && p.name == name && p.phase == phase) return p;
  }
  throw Error(ErrorKind::internal, "no point " + arm + " " + name + " " + phase);
}

TEST_F(Roofline, PartsSumToTheStepInEveryArm) {
  const StepProfile& profile = this->profile();
  EXPECT_EQ(stops_, 6);  // two arms, warm-up and two rounds
  EXPECT_GT(profile.ceilings.peak_gflops, 0.0);
  EXPECT_GT(profile.ceilings.memory_gbs, 0.0);
  for (const char* arm : {"plain", "fused"}) {
    std::map<std::string, double> seconds, flops, shares;
    for (const RooflinePoint& p : profile.points) {
      if (p.arm != arm || p.kind != RooflinePoint::Kind::op) continue;
      EXPECT_GE(p.seconds, 0.0) << p.name;
      EXPECT_GT(p.calls, 0.0) << p.name;
      seconds[p.phase] += p.seconds;
      flops[p.phase] += p.flops;
      shares[""] += p.share_of_step;
      seconds[""] += p.seconds;
    }
    EXPECT_NEAR(shares[""], 1.0, 1e-9);
    for (const char* phase : {"forward", "backward", "optimizer"}) {
      const RooflinePoint& sum = find(profile, arm, phase, phase);
      EXPECT_EQ(sum.kind, RooflinePoint::Kind::aggregate);
      EXPECT_NEAR(sum.seconds, seconds[phase], 1e-12);
      EXPECT_GT(flops[phase], 0.0);
    }
    EXPECT_NEAR(find(profile, arm, "step", "").seconds, seconds[""], 1e-12);
  }
  // Work of the optimizer is the same in both arms; rewrites moved bytes out of the others.
  EXPECT_EQ(find(profile, "plain", "optimizer", "optimizer").bytes,
            find(profile, "fused", "optimizer", "optimizer").bytes);
  EXPECT_LT(find(profile, "fused", "step", "").bytes, find(profile, "plain", "step", "").bytes);
}

TEST_F(Roofline, CountsAllMicroStepsAndOneOptimizer) {
  const TrainPrograms plain = build({});
  const StepProfile& profile = this->profile();
  std::map<std::string, double> calls;  // of linear and attention in the micro-step
  for (const Op& op : plain.next_micro_step.program.ops()) ++calls[std::string(op.def->name)];
  EXPECT_EQ(find(profile, "plain", "attention", "forward").calls, 2 * calls["attention"]);
  EXPECT_EQ(find(profile, "plain", "attention_bwd", "backward").calls, 2 * calls["attention_bwd"]);
  double muon = 0.0;
  for (const Op& op : plain.optimizer.program.ops()) muon += op.def->name == "polar_express";
  EXPECT_EQ(find(profile, "plain", "polar_express", "optimizer").calls, muon);
}

TEST_F(Roofline, FusedOpsNameTheOriginalOpsTheyReplace) {
  const StepProfile& profile = this->profile();
  const auto replaces = [&](const std::string& op, const std::string& phase,
                            const std::string& name) {
    const auto& names = find(profile, "fused", op, phase).replaces;
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  EXPECT_TRUE(replaces("residual_rmsnorm", "forward", "rmsnorm"));
  EXPECT_TRUE(replaces("residual_rmsnorm", "forward", "add"));
  EXPECT_TRUE(replaces("linear_cross_entropy_grad", "backward", "cross_entropy"));
  for (const RooflinePoint& p : profile.points) {
    EXPECT_TRUE(p.arm == "fused" || p.replaces.empty()) << p.name;
  }
  const std::vector<ReportRewrite> rewrites = rewrites_of(build({"fused-rmsnorm", "chunked-ce"}));
  ASSERT_EQ(rewrites.size(), 2u);
  EXPECT_EQ(rewrites[0].name, "fused-rmsnorm");
  EXPECT_GT(rewrites[0].places, 0);
  EXPECT_LT(rewrites[0].bytes_after, rewrites[0].bytes_before);
  int not_applied = 0;  // once for each reason, whatever the depth
  for (const std::string& line : rewrites[0].lines)
    not_applied += line.find("the norm's input is not a residual or scaled add") != line.npos;
  EXPECT_EQ(not_applied, 1);
  EXPECT_NE(std::find(rewrites[0].lines.begin(), rewrites[0].lines.end(),
                      "5 x not applied, first in embed: the norm's input is not a residual or "
                      "scaled add"),
            rewrites[0].lines.end());
}

TEST_F(Roofline, RefusesNoRoundsAndPassesAStopOn) {
  const TrainPrograms plain = build({});
  EXPECT_THROW(profile_step({{"plain", &plain}}, plan_, 0), Error);
  const auto stop = [] { throw Error(ErrorKind::interrupted, "stop"); };
  EXPECT_THROW(profile_step({{"plain", &plain}}, plan_, 1, stop), Error);
}

}  // namespace
}  // namespace tightloop
