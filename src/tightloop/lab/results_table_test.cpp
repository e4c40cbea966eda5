#include "tightloop/lab/results_table.h"

#include <gtest/gtest.h>

namespace tightloop {
namespace {

// The table of founding document 002, rebuilt from its raw lists.
const std::vector<ResultGroup> kPublished{
    {"Baseline", 1490, {3.2764, 3.2799, 3.2773, 3.2793}, {89.8030, 89.7110, 89.8350, 89.8490}},
    {"This PR", 1490, {3.2783, 3.2789, 3.2795, 3.2786}, {88.8210, 88.8090, 88.8060, 88.9000}}};

TEST(ResultsTable, ClassicReproducesThePublishedTableToTheDigit) {
  EXPECT_EQ(
      results_table(kPublished, {.target = 3.28, .classic = true}),
      "                        Runs  Steps    Time μ   Time σ  Time +/-   Loss μ   Loss σ  Loss "
      "+/-        p\n"
      "Baseline                   4   1490   89.7995   0.0621    0.0000   3.2782   0.0016    "
      "0.0000   0.0601\n"
      "This PR                    4   1490   88.8340   0.0445   -0.9655   3.2788   0.0005    "
      "0.0006   0.0097\n"
      "\n"
      "Baseline:\n"
      "  losses = [3.2764, 3.2799, 3.2773, 3.2793]\n"
      "  times  = [89.8030, 89.7110, 89.8350, 89.8490]\n"
      "\n"
      "This PR:\n"
      "  losses = [3.2783, 3.2789, 3.2795, 3.2786]\n"
      "  times  = [88.8210, 88.8090, 88.8060, 88.9000]\n");
}

TEST(ResultsTable, SaysWhetherTheChangeDiffersFromTheBaseline) {
  const std::string text = results_table(kPublished, {.target = 3.28});
  EXPECT_NE(text.find("p(dTime)"), std::string::npos);
  EXPECT_NE(text.find("8e-07"), std::string::npos);   // the time differs
  EXPECT_NE(text.find("0.5294"), std::string::npos);  // the loss may well not
  EXPECT_NE(text.find("[-1.06"), std::string::npos);  // interval of the difference in time
}

TEST(ResultsTable, FailedRunsAreCountedAndNamed) {
  const std::string text = results_table(
      {{.name = "a", .steps = 10, .losses = {3.0, 3.1}, .times = {1.0, 1.1}},
       {.name = "b", .steps = 10, .losses = {3.0}, .times = {1.0}, .failed = {"G.b.s2 diverged"}}},
      {.classic = true});
  EXPECT_NE(text.find(" 1/2 "), std::string::npos) << text;
  EXPECT_NE(text.find("failed = [G.b.s2 diverged]"), std::string::npos) << text;
}

TEST(ResultsTable, OneRunHasNoSpreadAndNoP) {
  const std::string text = results_table({{"only", 10, {1.5}, {2.0}}}, {.target = 2.0});
  EXPECT_NE(text.find("1.5000"), std::string::npos);
  EXPECT_NE(text.find("        -"), std::string::npos);
}

TEST(ResultsTable, WhatIsNotThereIsADash) {
  const std::string text = results_table({{"none", 10, {}, {}}, {"one", 10, {1.5}, {2.0}}},
                                         {.target = 2.0, .classic = true});
  EXPECT_NE(text.find("none                       0     10         -        -         -        -  "
                      "      -         -        -\n"
                      "one                        1     10    2.0000        -         -   1.5000  "
                      "      -         -        -\n"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace tightloop
