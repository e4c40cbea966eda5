#pragma once

#include <cmath>

#include <fmt/format.h>

#include "tightloop/lab/report/report.h"

namespace tightloop {

/// A report with every section filled: four arms, two seeds, one run of which stops early. The
/// numbers are made up.
inline ReportData example_report() {
  ReportData d;
  d.title = "Template G on made-up data: 4 arms x 2 seeds";
  d.metric = "val_bpb";
  d.threshold = 1.25;
  d.floor = 1.082;
  d.metric_sd = 0.004;
  d.metric_sd_source = "8 repeats, 7 degrees of freedom";
  d.answer = "both rewrites reach it 9.6 % sooner [5.1, 14.0], n = 2 pairs: suggestive";
  d.arms = {{"baseline", "--no-fused-rmsnorm --no-chunked-ce"},
            {"fused-rmsnorm", "--fused-rmsnorm --no-chunked-ce"},
            {"chunked-ce", "--no-fused-rmsnorm --chunked-ce"},
            {"both", "--fused-rmsnorm --chunked-ce"}};
  const double dt[] = {0.1, 0.0966, 0.0931, 0.0905};
  for (size_t a = 0; a < 4; ++a) {
    for (int seed = 1; seed <= 2; ++seed) {
      ReportRun run;
      run.arm = d.arms[a].name;
      run.seed = seed;
      const bool stops = a == 2 && seed == 2;
      for (int step = 0; step <= (stops ? 100 : 240); step += 8) {
        const double wave = 0.003 * std::sin(1.7 * step + 5.0 * seed + static_cast<double>(a));
        run.curve.push_back({step * dt[a] * (1.0 + 0.004 * seed), static_cast<double>(step),
                             1.1 + 2.0 * std::exp(-step / 55.0) + wave});
      }
      if (stops) {
        run.status = "killed";
      } else {
        const double at = (142.0 + seed) * dt[a];
        run.crossing = {at, at - 0.22, at + 0.25, 142.0 + seed};
      }
      d.runs.push_back(run);
    }
  }
  d.ceilings = {118.0, 14.5, 2, "avx512"};
  struct Op {
    const char* name;
    const char* phase;
    double calls, ms, mflop, mib;
  };
  const auto add = [&](const std::string& arm, const std::vector<Op>& ops, double step_ms) {
    for (const Op& op : ops) {
      RooflinePoint p;
      p.arm = arm;
      p.name = op.name;
      p.phase = op.phase;
      p.calls = op.calls;
      p.seconds = 1e-3 * op.ms;
      p.flops = 1e6 * op.mflop;
      p.bytes = 1048576.0 * op.mib;
      p.share_of_step = op.ms / step_ms;
      p.share_of_ceiling = std::fmax(p.flops / 118e9, p.bytes / 14.5e9) / p.seconds;
      if (p.name == "residual_rmsnorm") p.replaces = {"add", "rmsnorm"};
      if (p.name == "linear_cross_entropy") p.replaces = {"linear", "cross_entropy"};
      const bool whole = p.name == p.phase || p.name == "step";
      if (whole) p.kind = RooflinePoint::Kind::aggregate;
      if (p.name == "step") p.phase.clear();
      d.points.push_back(p);
    }
  };
  add("baseline",
      {{"linear", "forward", 25, 21.0, 1900, 60},
       {"attention", "forward", 4, 4.0, 150, 12},
       {"add", "forward", 8, 2.1, 1.0, 24},
       {"rmsnorm", "forward", 9, 1.9, 3.1, 18},
       {"cross_entropy", "forward", 1, 4.4, 40, 33},
       {"embedding", "forward", 1, 0.3, 0, 4},
       {"linear_dx", "backward", 25, 22.0, 1900, 66},
       {"linear_dw", "backward", 25, 23.0, 1900, 70},
       {"rmsnorm_bwd", "backward", 9, 3.0, 6.0, 36},
       {"attention_bwd", "backward", 4, 9.0, 380, 30},
       {"embedding_bwd", "backward", 1, 0.9, 1, 9},
       {"muon", "optimizer", 6, 5.5, 410, 22},
       {"adamw", "optimizer", 3, 3.0, 20, 38},
       {"forward", "forward", 48, 33.7, 2094, 151},
       {"backward", "backward", 64, 57.9, 4187, 211},
       {"optimizer", "optimizer", 9, 8.5, 430, 60},
       {"step", "", 121, 100.1, 6711, 422}},
      100.1);
  add("both",
      {{"linear", "forward", 24, 18.0, 1600, 50},
       {"attention", "forward", 4, 4.0, 150, 12},
       {"residual_rmsnorm", "forward", 8, 2.0, 4.1, 26},
       {"linear_cross_entropy", "forward", 1, 4.2, 340, 12},
       {"embedding", "forward", 1, 0.3, 0, 4},
       {"linear_dx", "backward", 25, 21.5, 1900, 66},
       {"linear_dw", "backward", 25, 22.5, 1900, 70},
       {"rmsnorm_bwd", "backward", 9, 3.0, 6.0, 36},
       {"attention_bwd", "backward", 4, 9.0, 380, 30},
       {"muon", "optimizer", 6, 5.5, 410, 22},
       {"adamw", "optimizer", 3, 3.0, 20, 38},
       {"forward", "forward", 48, 28.5, 2094, 104},
       {"backward", "backward", 64, 56.0, 4187, 202},
       {"optimizer", "optimizer", 9, 8.5, 430, 60},
       {"step", "", 121, 93.0, 6711, 366}},
      93.0);
  d.tables.push_back({"Results",
                      "time to target: mean and 90 % interval",
                      {"arm", "runs", "time to target", "steps", "ms a step", "tok/s", "peak MiB",
                       "loss", "verdict"},
                      {{"baseline", "2", "14.25 s +- 0.21", "142.5", "100.0", "20,480", "512",
                        "2.6121", "reference"},
                       {"fused-rmsnorm", "2", "13.77 s +- 0.21", "142.5", "96.6", "21,200", "498",
                        "2.6119", "suggestive"},
                       {"chunked-ce", "1 of 2", "13.26 s", "142.5", "93.1", "22,000", "397",
                        "2.6130", "inconclusive"},
                       {"both", "2", "12.89 s +- 0.22", "142.5", "90.5", "22,630", "383", "2.6122",
                        "suggestive"}}});
  d.tables.push_back({"Compile stability",
                      "",
                      {"arm", "plans", "allocations after warm-up", "first step"},
                      {{"baseline", "4", "0", "131 ms"}, {"both", "4", "0", "120 ms"}}});
  d.verdicts = {
      {"fused-rmsnorm",
       "suggestive",
       "Time per step is 3.4 % lower in both pairs; two seeds cannot separate this from the spread "
       "between sessions.",
       {{"time to target", -3.4, -8.0, 1.2},
        {"steps to target", 0.0, -4.0, 4.0},
        {"time per step", -3.4, -4.3, -2.5}}},
      {"chunked-ce",
       "inconclusive",
       "One of two runs was killed before it reached the target.",
       {{"time per step", -6.9, -40.0, 60.0}}},
      {"both",
       "suggestive",
       "Both pairs are faster; at least 6 more repeats are needed to say more.",
       {{"time to target", -9.6, -14.0, -5.1}, {"time per step", -9.5, -10.4, -8.6}}}};
  for (const ReportArm& arm : d.arms) {
    const double logits = arm.name == "baseline" || arm.name == "fused-rmsnorm" ? 128 : 16;
    d.memory.push_back({arm.name,
                        {{"parameters", 44.0 * 0x1p20},
                         {"gradients", 44.0 * 0x1p20},
                         {"optimizer", 61.0 * 0x1p20},
                         {"activations", (190.0 + logits) * 0x1p20},
                         {"scratch", 8.0 * 0x1p20}}});
  }
  d.rewrites = {{"fused-rmsnorm",
                 16,
                 9.4e7,
                 5.2e7,
                 8.0e6,
                 8.0e6,
                 {"8 x add + rmsnorm -> residual_rmsnorm, first in layer 0/attn",
                  "1 x not applied, first in final norm: the norm's input is not a residual"}},
                {"chunked-ce",
                 1,
                 9.1e7,
                 1.2e7,
                 3.8e8,
                 3.9e8,
                 {"1 x linear + cross_entropy -> linear_cross_entropy"}}};
  d.commands = {"git checkout 17b2609", "tightloop lab run G --preset quick-lab"};
  d.machine = {{"CPU", "2 threads of a made-up CPU"},
               {"ceilings", "118 GFLOP/s, 14.5 GB/s"},
               {"commit", "17b2609"}};
  d.notes = {"Cells ran in the order ABCD, DCBA.", "Made-up numbers."};
  return d;
}

}  // namespace tightloop
