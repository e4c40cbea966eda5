#include "tightloop/lab/report/roofline.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include <fmt/format.h>

#include "tightloop/core/build_info.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/host_info.h"
#include "tightloop/lab/report/svg.h"
#include "tightloop/train/memory_hint.h"
#include "tightloop/train/timing_state.h"

namespace tightloop {
namespace {

using Key = std::pair<std::string, std::string>;  // phase, op

constexpr std::string_view kOptimizer = "optimizer";

std::string phase_of(const Op& op, bool optimizer) {
  if (optimizer) return std::string(kOptimizer);
  return !op.scope.empty() && op.scope.back() == '\'' ? "backward" : "forward";
}

/// One Program of an arm and the times of its ops, per round.
struct Timed {
  Executable executable;
  double repeats;  // runs in one step
  bool optimizer;
  std::vector<std::vector<double>> seconds;  // by op, then round

  void run() {
    const size_t n = executable.program().ops().size();
    std::vector<double> before(n, 0.0);
    for (size_t i = 0; i < executable.profile().size(); ++i)
      before[i] = executable.profile()[i].seconds;
    executable.run_profiled();
    seconds.resize(n);
    for (size_t i = 0; i < n; ++i)
      seconds[i].push_back(executable.profile()[i].seconds - before[i]);
  }
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  const size_t n = v.size();
  return n % 2 == 1 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

std::vector<std::string> names_between_plus(std::string_view text) {
  std::vector<std::string> names;
  while (!text.empty()) {
    const size_t end = std::min(text.find(" + "), text.size());
    names.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 3, text.size()));
  }
  return names;
}

/// Op -> the ops of the Program as it was before any rewrite that it replaced.
std::map<std::string, std::set<std::string>> replaced_ops(
    const std::vector<RewriteReport>& reports) {
  std::map<std::string, std::set<std::string>> replaced;
  for (const RewriteReport& report : reports) {
    for (const RewriteSite& site : report.applied) {
      const size_t arrow = site.what.find(" -> ");
      if (arrow == std::string::npos) continue;
      std::set<std::string>& olds = replaced[site.what.substr(arrow + 4)];
      for (const std::string& name : names_between_plus(site.what.substr(0, arrow))) {
        const auto earlier = replaced.find(name);
        if (earlier != replaced.end() && &earlier->second != &olds)
          olds.insert(earlier->second.begin(), earlier->second.end());
        else
          olds.insert(name);
      }
    }
  }
  return replaced;
}

RooflinePoint sum_of(std::string name,
                     std::string phase,
                     const std::vector<RooflinePoint>& points,
                     double step_seconds) {
  RooflinePoint sum;
  sum.kind = RooflinePoint::Kind::aggregate;
  double floor = 0.0;
  for (const RooflinePoint& p : points) {
    if (!phase.empty() && p.phase != phase) continue;
    sum.arm = p.arm;
    sum.calls += p.calls;
    sum.seconds += p.seconds;
    sum.flops += p.flops;
    sum.bytes += p.bytes;
    floor += p.share_of_ceiling * p.seconds;
  }
  sum.name = std::move(name);
  sum.phase = std::move(phase);
  if (sum.seconds > 0.0) sum.share_of_ceiling = floor / sum.seconds;
  if (step_seconds > 0.0) sum.share_of_step = sum.seconds / step_seconds;
  return sum;
}

std::vector<RooflinePoint> points_of(const ProfiledArm& arm,
                                     const std::vector<const Timed*>& timed,
                                     const Ceilings& ceilings) {
  std::map<Key, RooflinePoint> by_key;
  std::map<Key, double> floors;
  for (const Timed* t : timed) {
    const Program& program = t->executable.program();
    for (size_t i = 0; i < program.ops().size(); ++i) {
      const Op& op = program.ops()[i];
      if (op.def->alias) continue;
      const Cost cost = cost_of(*op.def, program.types_of(op), op.attrs);
      const Key key{phase_of(op, t->optimizer), std::string(op.def->name)};
      RooflinePoint& p = by_key[key];
      p.arm = arm.name;
      p.phase = key.first;
      p.name = key.second;
      p.calls += t->repeats;
      p.seconds += t->repeats * median(t->seconds[i]);
      p.flops += t->repeats * static_cast<double>(cost.flops);
      p.bytes += t->repeats * static_cast<double>(cost.bytes());
      floors[key] += t->repeats * floor_seconds(cost, ceilings);
    }
  }
  const auto replaced = replaced_ops(arm.programs->first_micro_step.reports);
  std::vector<RooflinePoint> points;
  double step = 0.0;
  for (auto& [key, p] : by_key) {
    if (p.seconds > 0.0) p.share_of_ceiling = floors[key] / p.seconds;
    step += p.seconds;
    if (const auto it = replaced.find(p.name); it != replaced.end() && p.phase != kOptimizer)
      p.replaces.assign(it->second.begin(), it->second.end());
    points.push_back(p);
  }
  for (RooflinePoint& p : points) p.share_of_step = step > 0.0 ? p.seconds / step : 0.0;
  std::vector<RooflinePoint> sums{sum_of("step", "", points, step)};
  for (const char* phase : {"forward", "backward", "optimizer"})
    sums.push_back(sum_of(phase, phase, points, step));
  points.insert(points.begin(), sums.begin(), sums.end());
  return points;
}

}  // namespace

StepProfile profile_step(const std::vector<ProfiledArm>& arms,
                         const TrainPlan& plan,
                         int rounds,
                         const std::function<void()>& stop) {
  if (rounds < 1) fail(ErrorKind::usage, "a profile of {} rounds: at least 1 is needed", rounds);
  TL_CHECK(!arms.empty());
  const std::shared_ptr<SlotTable>& table = arms[0].programs->slots;
  std::vector<const Plan*> plans;
  for (const ProfiledArm& arm : arms) {
    for (const Plan* p : arm.programs->plans()) plans.push_back(p);
    const std::vector<Slot>&mine = table->all(), &its = arm.programs->slots->all();
    const bool alike = std::equal(mine.begin(), mine.end(), its.begin(), its.end(),
                                  [](const Slot& a, const Slot& b) {
                                    return a.name == b.name && a.type == b.type && a.role == b.role;
                                  });
    TL_CHECK(alike);  // rewrites change ops, never what persists between runs
  }
  const Device device = plans[0]->device;
  int64_t bytes = 0;
  for (const MemoryLine& line : memory_table(*table, device, plans)) bytes += line.bytes;
  const int64_t available = memory_available_on(device);
  if (bytes > available)
    throw Error(ErrorKind::oom, fmt::format("the profile needs {}, {} are free",
                                            human_bytes_text(static_cast<double>(bytes)),
                                            human_bytes_text(static_cast<double>(available))))
        .with_hint("use a smaller --device-batch-size or --depth");

  Ceilings ceilings = measure_ceilings(0.8, device, plan.dtype);
  SlotStore slots(table, device);
  const Workspace workspace(plans);
  const int64_t micro_tokens = slots.view(kTokensSlot).elems();
  fill_for_timing(*arms[0].programs, plan.model, plan.groups, micro_tokens * plan.micro_steps, 1,
                  slots);

  struct Arm {
    std::unique_ptr<Executable> first;  // when the later micro-steps are the ones that are timed
    std::unique_ptr<Timed> micro, optimizer;
  };
  const auto bind = [&](const PlannedProgram& p) {
    return Executable(p.program, p.plan, slots, workspace);
  };
  std::vector<Arm> bound;
  for (const ProfiledArm& arm : arms) {
    const bool several = plan.micro_steps > 1;
    const TrainPrograms& programs = *arm.programs;
    Arm a;
    if (several) a.first = std::make_unique<Executable>(bind(programs.first_micro_step));
    a.micro = std::make_unique<Timed>(
        Timed{bind(several ? programs.next_micro_step : programs.first_micro_step),
              static_cast<double>(plan.micro_steps),
              false,
              {}});
    a.optimizer = std::make_unique<Timed>(Timed{bind(programs.optimizer), 1.0, true, {}});
    bound.push_back(std::move(a));
  }
  for (int round = -1; round < rounds; ++round) {
    for (size_t i = 0; i < bound.size(); ++i) {
      Arm& a = bound[round % 2 == 0 ? i : bound.size() - 1 - i];
      if (stop) stop();
      if (a.first) a.first->run();
      a.micro->run();
      a.optimizer->run();
    }
    if (round >= 0) continue;
    for (Arm& a : bound) {  // the warm-up does not count
      a.micro->seconds.clear();
      a.optimizer->seconds.clear();
    }
  }

  const Ceilings again = measure_ceilings(0.8, device, plan.dtype);
  ceilings.fma_gflops = std::max(ceilings.fma_gflops, again.fma_gflops);
  ceilings.read_gbs = std::max(ceilings.read_gbs, again.read_gbs);

  StepProfile profile;
  profile.ceilings = {
      ceilings.fma_gflops, ceilings.read_gbs, ceilings.threads,
      device == Device::cuda
          ? fmt::format("{}, 8192 x 8192 x 8192; reading 1 GiB", ceilings.fma_kernel)
          : fmt::format("{} multiply-add, reading 128 MiB", ceilings.fma_kernel)};
  for (size_t i = 0; i < arms.size(); ++i) {
    const std::vector<RooflinePoint> points =
        points_of(arms[i], {bound[i].micro.get(), bound[i].optimizer.get()}, ceilings);
    profile.points.insert(profile.points.end(), points.begin(), points.end());
  }
  for (const RooflinePoint& p : profile.points) {
    // Operands can come from a cache faster than from memory, but nothing computes above the peak.
    const double gflops = 1e-9 * p.flops / p.seconds;
    if (p.seconds > 0.0 && gflops > 1.05 * ceilings.fma_gflops) {
      profile.notes.push_back(fmt::format(
          "{} ran at {} GFLOP/s, above the measured peak: something else kept the processor busy "
          "while the ceilings were measured. Repeat on a quiet machine.",
          p.name, short_number(gflops)));
      break;
    }
  }
  // The optimizer is the same Program in every arm: its times say how quiet the machine was.
  double least = 0.0, most = 0.0;
  for (const RooflinePoint& p : profile.points) {
    if (p.kind != RooflinePoint::Kind::aggregate || p.name != kOptimizer) continue;
    least = least == 0.0 ? p.seconds : std::min(least, p.seconds);
    most = std::max(most, p.seconds);
  }
  if (most > 1.15 * least)
    profile.notes.push_back(fmt::format(
        "The optimizer, the same Program in every arm, took {} in one arm and {} in another: "
        "differences of this size between arms mean nothing here. Repeat on a quiet machine.",
        human_seconds(least), human_seconds(most)));
  return profile;
}

std::vector<ReportRewrite> rewrites_of(const TrainPrograms& programs) {
  std::vector<ReportRewrite> rewrites;
  for (const RewriteReport& r : programs.first_micro_step.reports) {
    ReportRewrite rewrite;
    rewrite.name = r.name;
    rewrite.places = static_cast<int64_t>(r.applied.size());
    const Cost before = r.before(), after = r.after();
    rewrite.bytes_before = static_cast<double>(before.bytes());
    rewrite.bytes_after = static_cast<double>(after.bytes());
    rewrite.flops_before = static_cast<double>(before.flops);
    rewrite.flops_after = static_cast<double>(after.flops);
    std::map<std::string, std::pair<int, std::string>> kinds;  // what -> count, first scope
    for (const RewriteSite& site : r.applied) {
      auto& [count, scope] = kinds[site.what];
      if (count++ == 0) scope = site.scope;
    }
    for (const auto& [what, entry] : kinds)
      rewrite.lines.push_back(fmt::format("{} x {}, first in {}", entry.first, what, entry.second));
    // "<scope>: <why>", alike in every layer.
    std::vector<std::string> order;
    std::map<std::string, std::pair<int, std::string>> reasons;
    for (const std::string& text : r.not_applied) {
      const size_t colon = std::min(text.find(": "), text.size());
      const std::string why = text.substr(std::min(colon + 2, text.size()));
      auto& [count, scope] = reasons[why];
      if (count++ == 0) {
        scope = text.substr(0, colon);
        order.push_back(why);
      }
    }
    for (const std::string& why : order) {
      const auto& [count, scope] = reasons[why];
      rewrite.lines.push_back(fmt::format("{} x not applied, first in {}: {}", count, scope, why));
    }
    rewrites.push_back(std::move(rewrite));
  }
  return rewrites;
}

ReportMemory memory_of(const std::string& arm, const TrainPlan& plan) {
  ReportMemory memory{arm, {}};
  for (const MemoryLine& line : plan.memory)
    memory.bytes.emplace_back(line.purpose, static_cast<double>(line.bytes));
  return memory;
}

std::vector<std::pair<std::string, std::string>> machine_facts(const RooflineCeilings* ceilings) {
  const HostInfo host = host_info();
  std::vector<std::pair<std::string, std::string>> facts{
      {"processor", fmt::format("{}, {} threads", host.cpu_model, thread_count())},
      {"memory", human_bytes_text(static_cast<double>(host.memory_total_bytes))},
      {"system", fmt::format("{}, {}", host.os, host.kernel)},
      {"compiler", std::string(build_info().compiler)},
      {"commit", std::string(build_info().commit)}};
  if (ceilings)
    facts.emplace_back("ceilings",
                       fmt::format("{} GFLOP/s, {} GB/s ({})", short_number(ceilings->peak_gflops),
                                   short_number(ceilings->memory_gbs), ceilings->how));
  facts.emplace_back("written", utc_timestamp());
  return facts;
}

}  // namespace tightloop
