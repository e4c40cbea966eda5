#include <chrono>
#include <csignal>
#include <memory>
#include <sys/prctl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/cli/train_options.h"
#include "tightloop/core/json.h"
#include "tightloop/core/threads.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/trainer.h"

namespace tightloop::cli {
namespace {

using Clock = std::chrono::steady_clock;

/// Renders a run: one rewritten line on a terminal, at most one line a few seconds in a pipe.
class TrainView : public TrainObserver {
 public:
  explicit TrainView(bool json) : json_(json), terminal_(stderr_is_terminal()) {}

  void on_plan(const TrainPlan& plan) override {
    const Transfer& t = plan.transfer;
    say(
        fmt::format("model   {} layers, width {}, {} heads of {}, vocabulary {}, sequence {}: {} "
                    "parameters\n",
                    plan.model.n_layer, plan.model.n_embd, plan.model.n_head, plan.model.head_dim(),
                    plan.model.vocab_size, plan.model.sequence_len,
                    human(static_cast<double>(plan.sizes.parameters))));
    say(fmt::format("data    {} ({} training tokens, {} packing)\n", plan.data,
                    human(static_cast<double>(plan.train_tokens)), name_of(plan.packing)));
    say(fmt::format("plan    {} steps of {} tokens ({} micro-step{}), {} tokens, {} FLOP\n",
                    t.steps, t.batch, plan.micro_steps, plan.micro_steps == 1 ? "" : "s",
                    human(static_cast<double>(t.steps * t.batch)),
                    human(static_cast<double>(plan.sizes.flops_per_token) *
                          static_cast<double>(t.steps * t.batch))));
    std::string memory;
    for (const MemoryLine& line : plan.memory) {
      if (line.bytes >= (1 << 16))
        memory += fmt::format("{}{} {}", memory.empty() ? "" : ", ", line.purpose,
                              human_bytes(static_cast<double>(line.bytes)));
    }
    say(fmt::format("memory  {}: {}\n", human_bytes(static_cast<double>(plan.memory_bytes)),
                    memory));
    for (const std::string& note : plan.notes) say(fmt::format("note    {}\n", note));
    flops_per_token_ = static_cast<double>(plan.sizes.flops_per_token);
    steps_ = t.steps;
  }

  void on_start(const std::string& folder, int64_t first_step) override {
    if (json_) {
      OrderedJson line;
      line["v"] = 1;
      line["event"] = "start";
      line["run_folder"] = folder;
      line["step"] = first_step;
      line["steps"] = steps_;
      out(line.dump() + "\n");
    }
    say(fmt::format("run     {}{}\n\n", folder,
                    first_step > 0 ? fmt::format(" (continued at step {})", first_step) : ""));
  }

  void on_step(const StepReport& r) override {
    if (json_) {
      OrderedJson line;
      line["v"] = 1;
      line["event"] = "step";
      line["step"] = r.record.step;
      line["loss"] = r.record.loss;
      line["tok_per_sec"] = r.tokens_per_second;
      out(line.dump() + "\n");
    }
    const bool last = r.record.step + 1 == r.steps;
    const auto now = Clock::now();
    const double since = std::chrono::duration<double>(now - shown_).count();
    if (!last && since < (terminal_ ? 0.1 : 5.0)) return;
    shown_ = now;
    const std::string line = fmt::format(
        "step {:>6}/{}  {:5.1f}%  loss {:.4f}  val {}  lr {:.3f}  |g| {:.3f}  {:>6} tok/s  {:5.1f} "
        "GFLOP/s  {} eta {}",
        r.record.step + 1, r.steps,
        100.0 * static_cast<double>(r.record.step + 1) / static_cast<double>(r.steps),
        r.smoothed_loss, last_val_, r.record.lr_multiplier, r.record.grad_norm,
        human(r.tokens_per_second), 1e-9 * flops_per_token_ * r.tokens_per_second,
        duration(r.elapsed_s), r.eta_s ? duration(*r.eta_s) : "-");
    if (terminal_) {
      talk("\r\033[K" + line);
      open_line_ = true;
    } else {
      talk(line + "\n");
    }
  }

  void on_eval(const EvalReport& e) override {
    last_val_ = fmt::format("{:.4f}@{}", e.record.val_loss, e.record.step);
    if (json_) {
      OrderedJson line;
      line["v"] = 1;
      line["event"] = "eval";
      line["step"] = e.record.step;
      line["val_loss"] = e.record.val_loss;
      line["val_bpb"] = e.record.val_bpb;
      if (e.record.floor) line["floor"] = *e.record.floor;
      out(line.dump() + "\n");
    }
    say(fmt::format(
        "eval  {:>6}  val loss {:.4f} nats  bpb {:.4f}{}\n", e.record.step, e.record.val_loss,
        e.record.val_bpb,
        e.record.floor
            ? fmt::format("  floor {:.4f}  excess {:.4f} ± {:.4f}", *e.record.floor,
                          e.record.val_loss - *e.record.floor, e.evaluation.excess_error())
            : ""));
  }

  void on_sample(int64_t step, const std::string& prompt, const std::string& text) override {
    sample_ = prompt + text;
    sample_step_ = step;
  }

  void on_checkpoint(const std::string& path) override { say(fmt::format("saved {}\n", path)); }

  void finish(const TrainResult& r) {
    say("\n");
    if (r.last_eval && r.last_eval->record.floor) skills(*r.last_eval);
    if (!sample_.empty())
      say(fmt::format("sample after step {}:\n  {}\n\n", sample_step_, sample_));
    say(fmt::format("{}: {} steps, train clock {:.1f} s, {} tok/s (median), peak memory {}\n",
                    r.interrupted      ? "interrupted"
                    : r.reached_target ? "target reached"
                                       : "done",
                    r.steps_done, r.train_seconds, human(r.tokens_per_second),
                    human_bytes(static_cast<double>(r.peak_bytes))));
    if (r.last_eval)
      say(fmt::format("validation loss {:.4f} nats, {:.4f} bits per byte\n",
                      r.last_eval->record.val_loss, r.last_eval->record.val_bpb));
    if (r.time_to_target_s)
      say(fmt::format("time to target {:.2f} s on the train clock\n", *r.time_to_target_s));
    say(fmt::format("run folder {}\n", r.run_folder));
    if (r.interrupted)
      say(fmt::format("\nnext: `tightloop train --resume {}`\n", r.run_folder));
    else
      say(fmt::format("\nnext: `tightloop generate {} --max-tokens 100`\n", r.run_folder));
    if (json_) {
      OrderedJson line;
      line["v"] = 1;
      line["event"] = "end";
      line["status"] = r.status;
      line["run_folder"] = r.run_folder;
      line["steps"] = r.steps_done;
      line["final_train_loss"] = r.final_train_loss;
      if (r.last_eval) {
        line["val_loss"] = r.last_eval->record.val_loss;
        line["val_bpb"] = r.last_eval->record.val_bpb;
      }
      line["tok_per_sec_median"] = r.tokens_per_second;
      line["peak_bytes"] = r.peak_bytes;
      out(line.dump() + "\n");
    }
  }

 private:
  void skills(const EvalReport& e) {
    static constexpr std::string_view kMeaning[kSkillCount] = {
        "grammar: only one word can follow",
        "fresh facts: nobody can know them",
        "which sentence comes next",
        "facts said earlier in the story",
        "facts about the world, stored in weights",
        "arithmetic over the story"};
    say("what is learned, by skill (nats per token on the validation set):\n");
    say("  skill    share    loss   floor  excess\n");
    double total = 0.0;
    for (double n : e.evaluation.skill_tokens) total += n;
    for (size_t i = 0; i < e.evaluation.skill_tokens.size(); ++i) {
      const double n = e.evaluation.skill_tokens[i];
      if (n == 0.0) continue;
      say(fmt::format("  {:<7} {:5.1f}%  {:6.3f}  {:6.3f}  {:6.3f}  {}\n", kSkillNames[i],
                      100.0 * n / total, e.evaluation.skill_loss[i] / n,
                      e.evaluation.skill_floor[i] / n,
                      (e.evaluation.skill_loss[i] - e.evaluation.skill_floor[i]) / n, kMeaning[i]));
    }
    const EvalRecord& r = e.record;
    say(fmt::format("  all     100.0%  {:6.3f}  {:6.3f}  {:6.3f} ± {:.3f}\n\n", r.val_loss,
                    *r.floor, r.val_loss - *r.floor, e.evaluation.excess_error()));
    if (r.val_loss + 4.0 * e.evaluation.excess_error() < *r.floor)
      say("warning: the loss is below what is possible: validation data must have leaked\n\n");
  }

  void say(const std::string& text) {
    if (open_line_) talk("\n");
    open_line_ = false;
    talk(text);
  }

  bool json_;
  bool terminal_;
  bool open_line_ = false;
  int64_t steps_ = 0;
  double flops_per_token_ = 0.0;
  std::string last_val_ = "-";
  std::string sample_;
  int64_t sample_step_ = 0;
  Clock::time_point shown_{};
};

/// A target is looked for in evaluations only.
void expect_evaluations(const TrainConfig& config) {
  if (!config.target_threshold || config.eval_every != -1 || config.eval_window) return;
  throw Error(ErrorKind::usage,
              "--target-threshold can never be met with --eval-every -1, which never evaluates")
      .with_hint("evaluate, as with `--eval-every 100`, or leave out --target-threshold");
}

/// A cell of an experiment must not outlive the lab that measures it.
void end_with_parent(int64_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent)
    fail(ErrorKind::interrupted, "the process {} that started this one has ended", parent);
}

}  // namespace

void add_train(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand("train", "train a model to a horizon or a target");
  auto flags = std::make_shared<TrainFlags>(*command);
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "JSON lines on stdout: start, step, eval, end");
  auto parent = std::make_shared<int64_t>(0);
  command->add_option("--with-parent", *parent, "end when the process of this id does")->group("");
  command->footer(
      "Example: tightloop train --preset quick\n"
      "Switches have a --no- form. Settings: TOML file < --set < flag.");
  command->callback([flags, json, parent, &runner] {
    runner = [flags, json, parent] {
      if (*parent != 0) end_with_parent(*parent);
      flags->resolve();
      std::optional<Trainer> trainer;
      try {
        expect_evaluations(flags->config);
        trainer.emplace(flags->config, flags->options);
      } catch (const Error& error) {
        record_failure(flags->config, error);
        throw;
      }
      TrainView view(*json);
      const TrainResult result = trainer->run(view, g_stop);
      view.finish(result);
      return result.interrupted ? kInterrupted : kDone;
    };
  });
}

}  // namespace tightloop::cli
