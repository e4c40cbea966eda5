#include <cstdlib>
#include <filesystem>

#include <gtest/gtest.h>

#include "tightloop/train/check_case.h"

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

}  // namespace
}  // namespace tightloop
