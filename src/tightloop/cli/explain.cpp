#include <algorithm>
#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/report/roofline.h"
#include "tightloop/lab/report/svg.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/train/trainer.h"

namespace tightloop::cli {
namespace {

struct ExplainFlags {
  std::string program = "micro-step";
  bool ops = false;
  bool plain = false;
  bool json = false;
  std::string html, svg, png;  // files for the roofline
  int rounds = 5;

  bool profiles() const { return !html.empty() || !svg.empty() || !png.empty(); }
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

/// The Program that --program names.
const PlannedProgram& named_program(const TrainPrograms& programs, const std::string& name) {
  if (name == "micro-step") return programs.first_micro_step;
  if (name == "next-micro-step") return programs.next_micro_step;
  if (name == "evaluation") return programs.evaluation;
  if (name == "optimizer") return programs.optimizer;
  fail(ErrorKind::usage,
       "--program '{}' must be micro-step, next-micro-step, evaluation or optimizer", name);
}

/// The Program as it stands after one step of its making.
struct Stage {
  std::string name;
  size_t ops = 0;
  Cost cost;
  double floor_s = 0.0;
};

Stage stage_of(std::string name,
               const Program& program,
               const Ceilings& ceilings,
               bool with_backward = true) {
  Stage stage{std::move(name), 0, {}, 0.0};
  for (const Op& op : program.ops()) {
    if (!with_backward && op.scope.ends_with('\'')) continue;
    ++stage.ops;
    if (op.def->alias) continue;
    const Cost cost = cost_of(*op.def, program.types_of(op), op.attrs);
    stage.cost += cost;
    stage.floor_s += floor_seconds(cost, ceilings);
  }
  return stage;
}

/// model -> differentiate -> each rewrite. Builds the Programs once per stage.
std::vector<Stage> stages_of(const TrainConfig& config,
                             const Trainer& trainer,
                             const std::string& program,
                             const Ceilings& ceilings) {
  const std::vector<RewriteReport>& reports = named_program(trainer.programs(), program).reports;
  TrainProgramsSpec spec;
  spec.model = trainer.plan().model;
  spec.batch =
      trainer.programs()
          .slots->all()[static_cast<size_t>(trainer.programs().slots->get(kTokensSlot).index)]
          .type.shape[0];
  spec.rewrite_options = config.rewrite_options();
  spec.device = config.device;
  spec.dtype = config.dtype;
  std::vector<Stage> stages;
  const auto add = [&](const std::string& name) {
    const TrainPrograms built = build_train_programs(spec, trainer.plan().groups);
    const Program& p = named_program(built, program).program;
    if (spec.rewrites.empty() && program != "optimizer")
      stages.push_back(stage_of("model", p, ceilings, false));
    if (stages.empty() || stages[0].ops != p.ops().size())
      stages.push_back(stage_of(name, p, ceilings));
  };
  add(program == "optimizer" ? "optimizer" : "differentiate");
  for (const RewriteReport& report : reports) {
    spec.rewrites.push_back(report.name);
    add("--" + report.name);
  }
  return stages;
}

/// Panel A: profiles the step without rewrites and with those that are on (all, when none is).
void write_roofline(const TrainFlags& train, const ExplainFlags& flags) {
  TrainConfig plain = train.config, rewritten = train.config;
  for (auto& [name, on] : plain.rewrites) on = false;
  if (train.config.enabled_rewrites().empty() && !flags.plain) {
    for (auto& [name, on] : rewritten.rewrites) on = true;
  }
  const Trainer before(plain, train.options), after(rewritten, train.options);
  std::vector<ProfiledArm> arms{{"no rewrites", &before.programs()}};
  ReportData data;
  data.arms = {{"no rewrites", ""}};
  data.memory = {memory_of("no rewrites", before.plan())};
  if (!flags.plain) {
    const std::vector<std::string> names = rewritten.enabled_rewrites();
    const std::string arm =
        names.size() == 1 ? "--" + names[0] : fmt::format("{} rewrites", names.size());
    arms.push_back({arm, &after.programs()});
    data.arms.push_back({arm, "--" + joined(names, " --")});
    data.memory.push_back(memory_of(arm, after.plan()));
    data.rewrites = rewrites_of(after.programs());
  }
  talk(fmt::format("timing every op of {} rounds\n", flags.rounds));
  StepProfile profile = profile_step(arms, before.plan(), flags.rounds, [] {
    if (g_stop) throw Error(ErrorKind::interrupted, "interrupted before the profile was done");
  });
  const NanochatConfig& m = before.plan().model;
  data.title = fmt::format(
      "Training step of a model of {} layers, width {}, vocabulary {}: {} x {} tokens in {} "
      "micro-step{}",
      m.n_layer, m.n_embd, m.vocab_size, before.plan().rows_per_step, m.sequence_len,
      before.plan().micro_steps, before.plan().micro_steps == 1 ? "" : "s");
  std::string times;
  for (const RooflinePoint& p : profile.points) {
    if (p.name != "step" || p.kind != RooflinePoint::Kind::aggregate) continue;
    times += fmt::format("{}{} at {:.0f} % of its ceiling with {}", times.empty() ? "" : "; ",
                         human_seconds(p.seconds), 100.0 * p.share_of_ceiling, p.arm);
  }
  data.answer = "A step takes " + times;
  if (!profile.notes.empty()) data.answer += ". Measured on a busy machine: see the notes";
  data.machine = machine_facts(&profile.ceilings);
  data.notes = {
      fmt::format("Seconds are medians of {} rounds after one to warm up; the arms took turns. A "
                  "few rounds show where time goes, not whether a small difference is real: that "
                  "needs `tightloop bench train --compare` or `tightloop lab run`.",
                  flags.rounds),
      "Timed op by op: a clock is read between operations."};
  data.notes.insert(data.notes.end(), profile.notes.begin(), profile.notes.end());
  data.ceilings = std::move(profile.ceilings);
  data.points = std::move(profile.points);
  const auto wrote = [](const std::string& path) { talk(fmt::format("wrote {}\n", path)); };
  if (!flags.html.empty()) {
    write_file_atomically(flags.html, render_html(data));
    wrote(flags.html);
  }
  if (flags.svg.empty() && flags.png.empty()) return;
  const std::string svg = panel_svg(data, Panel::roofline);
  if (!flags.svg.empty()) {
    write_file_atomically(flags.svg, svg);
    wrote(flags.svg);
  }
  if (!flags.png.empty()) {
    write_png(svg, flags.png);
    wrote(flags.png);
  }
}

/// An attention operation on cuda, by which kernel, and how often.
struct AttentionKernel {
  std::string what;  // "attention q bf16(32, 2048, 6, 128) k bf16(32, 2048, 6, 128) window 2048"
  std::string kernel;
  int64_t count = 0;
};

std::vector<AttentionKernel> attention_kernels(const Program& program) {
  std::vector<AttentionKernel> found;
  for (const Op& op : program.ops()) {
    const bool backward = op.def->name == "attention_bwd";
    if (!backward && op.def->name != "attention") continue;
    const size_t first = backward ? 1 : 0;
    const Type &q = program.type(op.inputs[first]), &k = program.type(op.inputs[first + 1]);
    const int64_t window = op.attrs.integer("window");
    const std::string what =
        fmt::format("{} q {} k {} window {}", op.def->name, to_string(q), to_string(k), window);
    const auto same = std::find_if(found.begin(), found.end(),
                                   [&](const AttentionKernel& a) { return a.what == what; });
    if (same != found.end()) {
      ++same->count;
      continue;
    }
    const std::string_view kernel =
        attention_kernel_name(q, k, window, op.attrs.number("softmax_scale"), backward);
    found.push_back({what, std::string(kernel), 1});
  }
  return found;
}

OrderedJson cost_json(const Cost& c) {
  return {{"bytes_read", c.bytes_read}, {"bytes_written", c.bytes_written}, {"flops", c.flops}};
}

double change(int64_t before, int64_t after) {
  return before == 0 ? 0.0
                     : 100.0 * static_cast<double>(after - before) / static_cast<double>(before);
}

void show_stages(const std::vector<Stage>& stages, const Plan& plan) {
  out("stages                        ops       bytes        FLOPs    floor\n");
  for (const Stage& s : stages)
    out(fmt::format("  {:<22} {:>8}  {:>10}  {:>10}  {:7.3f} ms\n", s.name, s.ops,
                    human_bytes(static_cast<double>(s.cost.bytes())),
                    human(static_cast<double>(s.cost.flops)), 1e3 * s.floor_s));
  out(fmt::format("  {:<22} {:>8}  {:>10}  in {} buffers, + {} scratch\n\n", "plan",
                  stages.back().ops, human_bytes(static_cast<double>(plan.arena_bytes)),
                  plan.buffers.size(), human_bytes(static_cast<double>(plan.scratch_bytes))));
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
  const PlannedProgram& p = named_program(programs, flags.program);
  const Ceilings ceilings = measure_ceilings(0.5, train.config.device, train.config.dtype);
  const std::vector<Total> totals = totals_of(p.program, ceilings);
  const TrainPlan& plan = trainer.plan();
  const std::vector<Stage> stages = stages_of(train.config, trainer, flags.program, ceilings);
  if (const std::string warning = warning_of(ceilings); !warning.empty())
    talk("warning: " + warning + "\n");
  if (flags.profiles()) write_roofline(train, flags);

  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["program"] = flags.program;
    json["startup_ms"] = plan.startup_ms;
    json["peak_gflops"] = ceilings.fma_gflops;
    json["read_gbps"] = ceilings.read_gbs;
    OrderedJson stage_list = OrderedJson::array();
    for (const Stage& s : stages)
      stage_list.push_back({{"stage", s.name},
                            {"ops", s.ops},
                            {"cost", cost_json(s.cost)},
                            {"floor_us", 1e6 * s.floor_s}});
    json["stages"] = stage_list;
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
    if (train.config.device == Device::cuda) {
      OrderedJson attention = OrderedJson::array();
      for (const AttentionKernel& a : attention_kernels(p.program))
        attention.push_back({{"what", a.what}, {"kernel", a.kernel}, {"count", a.count}});
      json["attention"] = attention;
    }
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
  show_stages(stages, p.plan);
  show_rewrites(p.reports);
  if (train.config.device == Device::cuda) {
    const std::vector<AttentionKernel> kernels = attention_kernels(p.program);
    if (!kernels.empty()) out("\nattention by\n");
    for (const AttentionKernel& a : kernels)
      out(fmt::format("  {:<6} {} x {}\n", a.kernel, a.count, a.what));
  }

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
    out(fmt::format(
        "peak of this Program: {} live at op {}, {} in '{}'; arena {} and scratch {} ({:.1f}% "
        "over)\n",
        human_bytes(static_cast<double>(p.plan.peak_live_bytes())), p.plan.peak_op, peak.def->name,
        peak.scope, human_bytes(static_cast<double>(p.plan.arena_bytes)),
        human_bytes(static_cast<double>(p.plan.scratch_bytes)),
        change(p.plan.peak_live_bytes(), p.plan.arena_bytes + p.plan.scratch_bytes)));
  }
  return kDone;
}

}  // namespace

void add_explain(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand(
      "explain",
      "the Program of a training run: stages, rewrites, floor, memory; with --html its roofline");
  auto train = std::make_shared<TrainFlags>(*command);
  auto flags = std::make_shared<ExplainFlags>();
  command->add_option("--program", flags->program,
                      "micro-step, next-micro-step, evaluation or optimizer [micro-step]");
  command->add_flag("--ops", flags->ops, "every op with shapes, bytes, FLOPs and live memory");
  command->add_flag("--plain", flags->plain, "without any rewrite");
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->add_option("--html", flags->html, "run a few steps, write the roofline as a page")
      ->type_name("FILE");
  command->add_option("--svg", flags->svg, "the same picture alone")->type_name("FILE");
  command->add_option("--png", flags->png, "the same, drawn by rsvg-convert")->type_name("FILE");
  command->add_option("--rounds", flags->rounds, "timed steps for the roofline [5]");
  command->footer(
      "Example: tightloop explain --preset quick --ops\n"
      "         tightloop explain --preset quick --html roofline.html\n"
      "Runs nothing but for --html, --svg and --png: those time every op, with and without the "
      "rewrites that are on (all of them when none is).");
  command->callback(
      [train, flags, &runner] { runner = [train, flags] { return run_explain(*train, *flags); }; });
}

}  // namespace tightloop::cli
