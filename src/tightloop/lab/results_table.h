#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tightloop {

/// One line of the results table: repeats of one arm.
struct ResultGroup {
  std::string name;
  int64_t steps = 0;
  std::vector<double> losses;         // final validation loss, one a run
  std::vector<double> times;          // seconds, one a run
  std::vector<std::string> failed{};  // runs without a result, with how they ended
};

struct ResultsTableOptions {
  double target = 3.28;  // p: one-sided one-sample t-test that the mean loss is below it
  bool classic = false;  // the columns of the speed-run's tables, and no others
};

/// The fixed-width table of the speed-runs: Runs, Steps, Time μ σ +/-, Loss μ σ +/-, p; the first
/// group is the reference of the differences. Then the raw lists. Beyond --classic: two-sided Welch
/// p-values and 95 % intervals of both differences to the first group, which is what the column p
/// does not say.
std::string results_table(const std::vector<ResultGroup>& groups,
                          const ResultsTableOptions& options);

}  // namespace tightloop
