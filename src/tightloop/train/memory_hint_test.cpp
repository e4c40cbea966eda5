#include "tightloop/train/memory_hint.h"

#include <gtest/gtest.h>

namespace tightloop {
namespace {

int64_t bytes(int64_t micro_batch, int64_t depth) {
  return depth * (100 + 10 * micro_batch);
}

TEST(MemoryHint, NamesTheLargestPowerOfTwoThatFits) {
  EXPECT_EQ(memory_hint(1000, 1 << 20, 2, bytes(16, 2), bytes), "use `--device-batch-size 16`");
  EXPECT_EQ(memory_hint(1000, 1 << 20, 2, bytes(16, 2) - 1, bytes), "use `--device-batch-size 8`");
  EXPECT_EQ(memory_hint(1000, 1 << 20, 2, bytes(1, 2), bytes), "use `--device-batch-size 1`");
  // Below the micro-batch that did not fit, whatever is free by now.
  EXPECT_EQ(memory_hint(64, 1 << 20, 2, bytes(999, 2), bytes), "use `--device-batch-size 32`");
}

TEST(MemoryHint, DividesTheRowsOfAStep) {
  const auto hint = [](int64_t micro_batch, int64_t rows, int64_t fits) {
    return memory_hint(micro_batch, rows, 2, bytes(fits, 2), bytes);
  };
  EXPECT_EQ(hint(96, 96, 40), "use `--device-batch-size 32`");
  EXPECT_EQ(hint(96, 96, 31), "use `--device-batch-size 24`");  // 16 is smaller
  EXPECT_EQ(hint(500, 1000, 499), "use `--device-batch-size 250`");
  EXPECT_EQ(hint(500, 1000, 16), "use `--device-batch-size 10`");
  // Divided by 1 and itself alone: a last micro-batch that is partly empty costs less.
  EXPECT_EQ(hint(997, 997, 500), "use `--device-batch-size 256`");
  EXPECT_EQ(hint(997, 997, 3), "use `--device-batch-size 1`");
}

TEST(MemoryHint, NamesTheLargestDepthWhenNoMicroBatchFits) {
  EXPECT_EQ(memory_hint(8, 1 << 20, 20, bytes(1, 7), bytes),
            "use `--depth 7 --device-batch-size 1`");
  EXPECT_EQ(memory_hint(1, 1 << 20, 20, bytes(1, 7), bytes), "use `--depth 7`");
  EXPECT_EQ(memory_hint(1, 1 << 20, 20, bytes(1, 1), bytes), "use `--depth 1`");
  EXPECT_NE(memory_hint(8, 1 << 20, 20, 1, bytes).find("free some memory"), std::string::npos);
  EXPECT_NE(memory_hint(1, 1 << 20, 1, 1, bytes).find("free some memory"), std::string::npos);
}

TEST(MemoryHint, PlansAFewTimes) {
  int plans = 0;
  memory_hint(1 << 20, 1 << 20, 200, 0, [&](int64_t, int64_t) {
    ++plans;
    return int64_t{1};
  });
  EXPECT_LE(plans, 14);
}

}  // namespace
}  // namespace tightloop
