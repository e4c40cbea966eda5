#include "tightloop/lab/resume_check.h"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace tightloop {
namespace {

constexpr int64_t kFrom = 30, kSteps = 50;

/// A run whose processes began at step 0 and, for `continued_at` > 0, there.
std::vector<StepRecord> run_of(int64_t continued_at = 0) {
  std::vector<StepRecord> steps;
  for (int64_t i = 0; i < kSteps; ++i) {
    const int64_t began = i < continued_at ? 0 : continued_at;
    steps.push_back({.step = i,
                     .tokens = (i + 1) * 1000,
                     .loss = 5.0 / static_cast<double>(i + 1),
                     .dt_ns = 1'000'000,
                     .flags = i - began < kUncountedSteps ? 1 : 0,
                     .data_hash = 7u * static_cast<uint64_t>(i + 1)});
  }
  return steps;
}

TEST(ResumeCheck, ARunThatContinuesAsItWasHasNoDifference) {
  EXPECT_EQ(difference_after_resuming(run_of(), run_of(kFrom), kFrom), "");
}

TEST(ResumeCheck, OtherIdsOfOneStepAreFound) {
  std::vector<StepRecord> resumed = run_of(kFrom);
  resumed[40].data_hash ^= 1;
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom),
            "step 40 was fed with other ids after resuming at 30");
  resumed = run_of(kFrom);
  resumed[20].data_hash ^= 1;  // before it
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom), "");
}

TEST(ResumeCheck, TheLastBitOfALossIsFound) {
  std::vector<StepRecord> resumed = run_of(kFrom);
  resumed[kFrom].loss = std::nextafter(resumed[kFrom].loss, 10.0);
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom),
            "the loss of step 30 has other bits after resuming at 30");
}

TEST(ResumeCheck, ColdStepsMustNotCountAndOthersMust) {
  EXPECT_EQ(difference_after_resuming(run_of(), run_of(), kFrom),
            "step 30 counts in times after resuming at 30, expected the first 11 not to");
  std::vector<StepRecord> resumed = run_of(kFrom);
  resumed[40].flags = 0;
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom),
            "step 40 counts in times after resuming at 30, expected the first 11 not to");
  resumed = run_of(kFrom);
  resumed[41].flags = 1;
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom),
            "step 41 does not count in times after resuming at 30, expected the first 11 not to");
}

TEST(ResumeCheck, AllStepsMustBeThere) {
  std::vector<StepRecord> resumed = run_of(kFrom);
  resumed.pop_back();
  EXPECT_EQ(difference_after_resuming(run_of(), resumed, kFrom),
            "resumed at 30, it took 49 steps, expected 50");
}

TEST(ResumeCheck, StartsMustAgreeInIdsAndBits) {
  const std::vector<StepRecord> first = run_of();
  std::vector<StepRecord> second(first.begin(), first.begin() + 4);
  EXPECT_EQ(difference_of_starts(first, second), "");
  second[2].loss = 0.0;  // how many steps it took on the way out is no matter
  EXPECT_EQ(difference_of_starts(first, second), "");
  second[1].loss = std::nextafter(second[1].loss, 10.0);
  EXPECT_EQ(difference_of_starts(first, second),
            "the loss of step 1 of a second start has other bits");
  second[0].data_hash ^= 1;
  EXPECT_EQ(difference_of_starts(first, second), "step 0 of a second start was fed with other ids");
  second.resize(1);
  EXPECT_EQ(difference_of_starts(first, second), "a second start ended after 1 steps, expected 2");
  EXPECT_EQ(difference_of_starts(std::vector<StepRecord>{first[0]},
                                 std::vector<StepRecord>{first[0], first[1]}),
            "")
      << "a run of one step";
}

}  // namespace
}  // namespace tightloop
