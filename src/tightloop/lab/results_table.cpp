#include "tightloop/lab/results_table.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tightloop/lab/statistics.h"

namespace tightloop {
namespace {

std::string number(double value) {
  return std::isnan(value) ? "-" : fmt::format("{:.4f}", value);
}

std::string probability(double p) {
  if (std::isnan(p)) return "-";
  return p < 0.0001 ? fmt::format("{:.0e}", p) : fmt::format("{:.4f}", p);
}

/// "[-1.0604, -0.8706]": the 95 % interval of a Welch difference.
std::string interval(const TTest& test) {
  if (std::isnan(test.p)) return "-";
  const double half = student_t_quantile(0.975, test.df) * test.error;
  return fmt::format("[{:+.4f}, {:+.4f}]", test.difference - half, test.difference + half);
}

std::string list(const std::vector<double>& values) {
  std::string text;
  for (const double x : values) text += fmt::format("{}{:.4f}", text.empty() ? "" : ", ", x);
  return "[" + text + "]";
}

}  // namespace

std::string results_table(const std::vector<ResultGroup>& groups,
                          const ResultsTableOptions& options) {
  size_t width = 24;
  for (const ResultGroup& g : groups) width = std::max(width, g.name.size() + 2);
  std::string text =
      fmt::format("{:<{}}{:>4}{:>7}{:>10}{:>9}{:>10}{:>9}{:>9}{:>10}{:>9}", "", width, "Runs",
                  "Steps", "Time μ", "Time σ", "Time +/-", "Loss μ", "Loss σ", "Loss +/-", "p");
  if (!options.classic)
    text +=
        fmt::format("{:>10}{:>22}{:>10}{:>22}", "p(dTime)", "dTime 95%", "p(dLoss)", "dLoss 95%");
  text += "\n";
  for (const ResultGroup& g : groups) {
    const Sample time = sample_of(g.times), loss = sample_of(g.losses);
    const ResultGroup& first = groups.front();
    const TTest times = welch(first.times, g.times), losses = welch(first.losses, g.losses);
    // Of nothing there is no mean, and of one run no spread.
    const auto mean = [](const Sample& s) { return s.n > 0 ? number(s.mean) : "-"; };
    const auto sd = [](const Sample& s) { return s.n > 1 ? number(s.sd) : "-"; };
    const auto difference = [](const TTest& test, const auto& a, const auto& b) {
      return a.empty() || b.empty() ? "-" : number(test.difference);
    };
    text += fmt::format(
        "{:<{}}{:>4}{:>7}{:>10}{:>9}{:>10}{:>9}{:>9}{:>10}{:>9}", g.name, width,
        g.failed.empty() ? fmt::format("{}", g.losses.size())
                         : fmt::format("{}/{}", g.losses.size(), g.losses.size() + g.failed.size()),
        g.steps, mean(time), sd(time), difference(times, first.times, g.times), mean(loss),
        sd(loss), difference(losses, first.losses, g.losses),
        probability(one_sample_below(g.losses, options.target).p));
    if (!options.classic) {
      const bool reference = &g == &groups.front();
      text +=
          fmt::format("{:>10}{:>22}{:>10}{:>22}", reference ? "-" : probability(times.p),
                      reference ? "-" : interval(times), reference ? "-" : probability(losses.p),
                      reference ? "-" : interval(losses));
    }
    text += "\n";
  }
  for (const ResultGroup& g : groups) {
    text +=
        fmt::format("\n{}:\n  losses = {}\n  times  = {}\n", g.name, list(g.losses), list(g.times));
    if (g.failed.empty()) continue;
    std::string names;
    for (const std::string& cell : g.failed) names += (names.empty() ? "" : ", ") + cell;
    text += "  failed = [" + names + "]\n";
  }
  return text;
}

}  // namespace tightloop
