#include "tightloop/engine/ceilings.h"

#include <gtest/gtest.h>

#include "tightloop/core/threads.h"
#include "tightloop/engine/memory.h"

namespace tightloop {
namespace {

TEST(Ceilings, AreMeasured) {
  const int64_t before = memory_block_bytes();
  const Ceilings c = measure_ceilings(0.02);
  // Bounds that only a wrong unit or a loop that was optimised away can break.
  for (double rate : {c.read_gbs, c.copy_gbs, c.update_gbs}) {
    EXPECT_GT(rate, 1e-3);
    EXPECT_LT(rate, 1e5);
  }
  EXPECT_GT(c.fma_gflops, 1e-2);
  EXPECT_LT(c.fma_gflops, 500.0 * c.threads);
  EXPECT_EQ(c.threads, thread_count());
  EXPECT_FALSE(c.fma_kernel.empty());
  EXPECT_EQ(memory_block_bytes(), before);
}

TEST(Ceilings, NoBudgetStillMeasures) {
  EXPECT_GT(measure_ceilings(0.0).copy_gbs, 0.0);
}

TEST(Ceilings, CpuTimeOfTheSystemFile) {
  const auto ticks = parse_cpu_ticks("cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 1 1 1\n");
  ASSERT_TRUE(ticks.has_value());
  EXPECT_EQ(ticks->busy, 10 + 20 + 30 + 6 + 7 + 8);
  EXPECT_EQ(ticks->idle, 450);
  for (const char* bad : {"", "cpu", "cpu  x", "cpu0 1 2 3 4", "intr 1 2 3 4", "cpu 0 0 0 0"})
    EXPECT_FALSE(parse_cpu_ticks(bad).has_value()) << bad;
}

TEST(Ceilings, OtherProgramsAreNamed) {
  EXPECT_EQ(warning_of({.foreign_share = 0.05}), "");
  EXPECT_NE(warning_of({.foreign_share = 0.43}).find("43 %"), std::string::npos);
}

TEST(Ceilings, FloorIsTheLargerOfComputeAndMemory) {
  const Ceilings c{.fma_gflops = 100.0, .read_gbs = 20.0, .copy_gbs = 1.0, .update_gbs = 1.0};
  // 1 GB read and 1 GB written at 20 GB/s: 0.1 s. 5 GFLOP at 100 GFLOP/s: 0.05 s.
  Cost cost{.bytes_read = 1'000'000'000, .bytes_written = 1'000'000'000, .flops = 5'000'000'000};
  EXPECT_DOUBLE_EQ(floor_seconds(cost, c), 0.1);
  cost.flops = 50'000'000'000;
  EXPECT_DOUBLE_EQ(floor_seconds(cost, c), 0.5);
  EXPECT_DOUBLE_EQ(floor_seconds(Cost{}, c), 0.0);
}

}  // namespace
}  // namespace tightloop
