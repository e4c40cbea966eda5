#include <algorithm>
#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/train/trainer.h"

namespace tightloop::cli {
namespace {

struct ExplainFlags {
  std::string program = "micro-step";
  bool ops = false;
  bool plain = false;
  bool json = false;
};

/// Ops of one name: how many, and what they must move and compute at least.
struct Total {
  std::string name;
  int64_t count = 0;
  Cost cost;
  double floor_s = 0.0;
};

std::vector<Total> totals_of(const Program& program, const Ceilings& ceilings) {
  std::map<std::string, Total> by_name;
  for (const Op& op : program.ops()) {
    if (op.def->alias) continue;
    Total& total = by_name[std::string(op.def->name)];
    const Cost cost = cost_of(*op.def, program.types_of(op), op.attrs);
    total.name = op.def->name;
    ++total.count;
    total.cost += cost;
    total.floor_s += floor_seconds(cost, ceilings);
  }
  std::vector<Total> totals;
  for (const auto& [name, total] : by_name) totals.push_back(total);
  std::sort(totals.begin(), totals.end(),
            [](const Total& a, const Total& b) { return a.floor_s > b.floor_s; });
  return totals;
}

OrderedJson cost_json(const Cost& c) {
  return {{"bytes_read", c.bytes_read}, {"bytes_written", c.bytes_written}, {"flops", c.flops}};
}

double change(int64_t before, int64_t after) {
  return before == 0 ? 0.0
                     : 100.0 * static_cast<double>(after - before) / static_cast<double>(before);
}

void show_rewrites(const std::vector<RewriteReport>& reports) {
  out("rewrites\n");
  if (reports.empty()) out("  none\n");
  for (const RewriteReport& r : reports) {
    out(fmt::format("  --{}: {} place{}", r.name, r.applied.size(),
                    r.applied.size() == 1 ? "" : "s"));
    if (!r.applied.empty())
      out(fmt::format(", bytes {} -> {} ({:+.1f}%), FLOPs {:+.1f}%",
                      human_bytes(static_cast<double>(r.before().bytes())),
                      human_bytes(static_cast<double>(r.after().bytes())),
                      change(r.before().bytes(), r.after().bytes()),
                      change(r.before().flops, r.after().flops)));
    out("\n");
    std::map<std::string, std::pair<int, std::string>> kinds;  // what -> count, an example's scope
    for (const RewriteSite& site : r.applied) {
      auto& [count, scope] = kinds[site.what];
      if (count++ == 0) scope = site.scope;
    }
    for (const auto& [what, entry] : kinds)
      out(fmt::format("    {} x {}  (first in {})\n", entry.first, what, entry.second));
    for (const std::string& why : r.not_applied) out("    not applied: " + why + "\n");
  }
}

int run_explain(TrainFlags& train, const ExplainFlags& flags) {
  train.resolve();
  if (flags.plain) {
    for (auto& [name, on] : train.config.rewrites) on = false;
  }
  const Trainer trainer(train.config, train.options);
  const TrainPrograms& programs = trainer.programs();
  const std::map<std::string, const PlannedProgram*> known{
      {"micro-step", &programs.first_micro_step},
      {"next-micro-step", &programs.next_micro_step},
      {"evaluation", &programs.evaluation},
      {"optimizer", &programs.optimizer}};
  const auto it = known.find(flags.program);
  if (it == known.end())
    fail(ErrorKind::usage,
         "--program '{}' must be micro-step, next-micro-step, evaluation or optimizer",
         flags.program);
  const PlannedProgram& p = *it->second;
  const Ceilings ceilings = measure_ceilings(0.5);
  const std::vector<Total> totals = totals_of(p.program, ceilings);
  const TrainPlan& plan = trainer.plan();

  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["program"] = flags.program;
    json["startup_ms"] = plan.startup_ms;
    json["peak_gflops"] = ceilings.fma_gflops;
    json["read_gbps"] = ceilings.read_gbs;
    OrderedJson rewrites = OrderedJson::array();
    for (const RewriteReport& r : p.reports) {
      OrderedJson sites = OrderedJson::array();
      for (const RewriteSite& s : r.applied)
        sites.push_back({{"scope", s.scope},
                         {"what", s.what},
                         {"before", cost_json(s.before)},
                         {"after", cost_json(s.after)}});
      rewrites.push_back({{"name", r.name}, {"applied", sites}, {"not_applied", r.not_applied}});
    }
    json["rewrites"] = rewrites;
    OrderedJson ops = OrderedJson::array();
    for (size_t i = 0; i < p.program.ops().size(); ++i) {
      const Op& op = p.program.ops()[i];
      const Cost cost = cost_of(*op.def, p.program.types_of(op), op.attrs);
      ops.push_back({{"op", op.def->name},
                     {"scope", op.scope},
                     {"cost", cost_json(cost)},
                     {"floor_us", 1e6 * floor_seconds(cost, ceilings)},
                     {"live_bytes", p.plan.live_bytes[i]}});
    }
    json["ops"] = ops;
    OrderedJson memory;
    for (const MemoryLine& line : plan.memory) memory[line.purpose] = line.bytes;
    json["memory"] = memory;
    json["peak_op"] = p.plan.peak_op;
    json["peak_live_bytes"] = p.plan.peak_live_bytes();
    json["arena_bytes"] = p.plan.arena_bytes;
    out(json.dump() + "\n");
    return kDone;
  }

  out(
      fmt::format("{}: {} ops, built, differentiated, rewritten and planned in {:.1f} ms (all "
                  "Programs)\n",
                  flags.program, p.program.ops().size(), plan.startup_ms));
  out(fmt::format("ceilings measured here: {:.0f} GFLOP/s, {:.1f} GB/s read\n\n",
                  ceilings.fma_gflops, ceilings.read_gbs));
  show_rewrites(p.reports);

  if (flags.ops) {
    out("\nops\n");
    for (size_t i = 0; i < p.program.ops().size(); ++i) {
      const Op& op = p.program.ops()[i];
      const Cost cost = cost_of(*op.def, p.program.types_of(op), op.attrs);
      out(fmt::format("{:4}  {:>10}  {:>8}FLOP  {:8.1f} us  live {:>10}  {}\n", i,
                      human_bytes(static_cast<double>(cost.bytes())),
                      human(static_cast<double>(cost.flops)), 1e6 * floor_seconds(cost, ceilings),
                      human_bytes(static_cast<double>(p.plan.live_bytes[i])),
                      to_string(p.program, op)));
    }
  }

  out("\nfloor by op (roofline: the larger of FLOPs / peak and bytes / read rate)\n");
  out("  op                            count       bytes        FLOPs    floor\n");
  double floor = 0.0;
  for (const Total& t : totals) {
    floor += t.floor_s;
    out(fmt::format("  {:<28} {:>6}  {:>10}  {:>10}  {:7.3f} ms\n", t.name, t.count,
                    human_bytes(static_cast<double>(t.cost.bytes())),
                    human(static_cast<double>(t.cost.flops)), 1e3 * t.floor_s));
  }
  out(fmt::format("  {:<28} {:>6}  {:>10}  {:>10}  {:7.3f} ms\n", "all", p.program.ops().size(), "",
                  "", 1e3 * floor));

  out("\nmemory of the run by purpose\n");
  for (const MemoryLine& line : plan.memory)
    out(fmt::format("  {:<12} {:>12}\n", line.purpose,
                    human_bytes(static_cast<double>(line.bytes))));
  out(fmt::format("  {:<12} {:>12}\n", "all", human_bytes(static_cast<double>(plan.memory_bytes))));
  if (!p.program.ops().empty()) {
    const Op& peak = p.program.ops()[static_cast<size_t>(p.plan.peak_op)];
    out(fmt::format("peak of this Program: {} live at op {}, {} in '{}'; arena {} ({:.1f}% over)\n",
                    human_bytes(static_cast<double>(p.plan.peak_live_bytes())), p.plan.peak_op,
                    peak.def->name, peak.scope,
                    human_bytes(static_cast<double>(p.plan.arena_bytes)),
                    change(p.plan.peak_live_bytes(), p.plan.arena_bytes + p.plan.scratch_bytes)));
  }
  return kDone;
}

}  // namespace

void add_explain(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand(
      "explain", "the Program of a training run, its rewrites, floor and memory; runs nothing");
  auto train = std::make_shared<TrainFlags>(*command);
  auto flags = std::make_shared<ExplainFlags>();
  command->add_option("--program", flags->program,
                      "micro-step, next-micro-step, evaluation or optimizer [micro-step]");
  command->add_flag("--ops", flags->ops, "every op with shapes, bytes, FLOPs and live memory");
  command->add_flag("--plain", flags->plain, "without any rewrite");
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->footer("Example: tightloop explain --preset quick --ops");
  command->callback(
      [train, flags, &runner] { runner = [train, flags] { return run_explain(*train, *flags); }; });
}

}  // namespace tightloop::cli
