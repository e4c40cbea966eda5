#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <gtest/gtest.h>

#include "tightloop/train/check_case.h"
#include "tightloop/train/programs.h"

namespace tightloop {
namespace {

std::string golden(const std::string& name) {
  const char* source = std::getenv("TL_SOURCE_DIR");
  return (std::filesystem::path(source == nullptr ? "." : source) / "tests/golden" / name).string();
}

class Parity : public ::testing::TestWithParam<std::tuple<std::string, Device>> {};

TEST_P(Parity, EverySetOfRewritesMeetsTheTolerances) {
  const auto& [name, device] = GetParam();
  for (const std::vector<std::string>& rewrites : rewrite_sweep(1)) {
    const CaseReport report =
        run_nanochat_case(golden(name), {.device = device, .rewrites = rewrites});
    for (const CaseQuantity& q : report.quantities)
      EXPECT_LE(q.error, q.tolerance) << name << " " << q.name;
    for (const std::string& failure : report.failures) ADD_FAILURE() << failure;
    EXPECT_GT(report.quantities.size(), 40u);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden,
                         Parity,
                         ::testing::Combine(::testing::Values("tiny-nanochat-2026-07",
                                                              "tiny-nanochat-2026-02"),
                                            ::testing::Values(Device::ref, Device::cpu)));

TEST(ParityCase, SweepHasNoneEachPairAndAll) {
  const auto sets = rewrite_sweep(1);
  size_t none = 0, one = 0, two = 0, four = 0;
  for (const auto& set : sets) {
    none += set.empty() ? 1u : 0u;
    one += set.size() == 1 ? 1u : 0u;
    two += set.size() == 2 ? 1u : 0u;
    four += set.size() == 4 ? 1u : 0u;
  }
  EXPECT_EQ(none, 1u);
  EXPECT_EQ(one, 4u);
  EXPECT_EQ(two, 6u);
  EXPECT_EQ(four, 1u);
}

TEST(ParityCase, RewriteThatDoesNotApplyFails) {
  const NanochatConfig model{.sequence_len = 8,
                             .vocab_size = 9,
                             .n_layer = 2,
                             .n_head = 2,
                             .n_kv_head = 2,
                             .n_embd = 32,
                             .window_pattern = "L"};
  TrainProgramsSpec spec{.model = model};
  for (const Rewrite& rewrite : all_rewrites()) spec.rewrites.emplace_back(rewrite.name);
  const TrainPrograms programs = build_train_programs(spec, {});
  Program program = programs.first_micro_step.program;
  EXPECT_EQ(unapplied_rewrites(program.name(), programs.first_micro_step.reports),
            std::vector<std::string>{});

  // What has been rewritten has no relu2 and no cross-entropy left, and one norm that never fits.
  CaseReport report;
  report.failures = unapplied_rewrites(
      program.name(), apply_rewrites(program, op_table(), spec.rewrites, spec.rewrite_options));
  EXPECT_FALSE(report.ok());
  const auto fails_with = [&](const std::string& sentence) {
    return std::find(report.failures.begin(), report.failures.end(), sentence) !=
           report.failures.end();
  };
  EXPECT_TRUE(
      fails_with("rewrite fused-relu2 did not apply to the Program 'micro-step, first': no site"));
  EXPECT_TRUE(
      fails_with("rewrite chunked-ce did not apply to the Program 'micro-step, first': no site"));
  EXPECT_EQ(report.failures.size(), spec.rewrites.size())
      << ::testing::PrintToString(report.failures);
  const auto reason =
      std::find_if(report.failures.begin(), report.failures.end(),
                   [](const std::string& s) { return s.find("rewrite fused-rmsnorm") == 0; });
  ASSERT_NE(reason, report.failures.end());
  EXPECT_EQ(reason->find("no site"), std::string::npos) << *reason;  // the first reason is given
}

}  // namespace
}  // namespace tightloop
