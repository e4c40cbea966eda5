#include <cmath>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/json.h"
#include "tightloop/core/threads.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/evaluate.h"

namespace tightloop::cli {
namespace {

struct EvalFlags {
  std::string checkpoint;
  EvaluateRequest request;
  std::string device = "cpu";
  std::optional<int64_t> threads;
  bool json = false;
};

int run_eval(EvalFlags& flags) {
  if (flags.threads) set_thread_count(static_cast<int>(*flags.threads));
  flags.request.device = parse_device(flags.device);
  flags.request.checkpoint = find_checkpoint(flags.checkpoint);
  const EvaluateResult r = evaluate_checkpoint(flags.request, g_stop);
  const Evaluation& e = r.evaluation;
  if (flags.json) {
    OrderedJson json;
    json["v"] = 1;
    json["checkpoint"] = flags.request.checkpoint;
    json["data"] = r.data;
    json["tokens"] = e.tokens;
    json["loss"] = e.loss();
    json["bpb"] = e.bits_per_byte();
    if (e.has_floor) json["floor"] = e.floor();
    out(json.dump() + "\n");
    return kDone;
  }
  out(fmt::format("{}\n{} tokens of {}\nloss {:.6f} nats a token\nbits per byte {:.6f}\n",
                  flags.request.checkpoint, e.tokens, r.data, e.loss(), e.bits_per_byte()));
  if (e.has_floor)
    out(fmt::format("floor {:.6f}, excess {:.6f} ± {:.6f}\n", e.floor(), e.loss() - e.floor(),
                    e.excess_error()));
  return kDone;
}

}  // namespace

void add_eval(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand("eval", "loss and bits per byte of a checkpoint");
  auto flags = std::make_shared<EvalFlags>();
  command->add_option("checkpoint", flags->checkpoint, "run folder or checkpoint")
      ->type_name("DIR")
      ->required();
  command
      ->add_option("--data", flags->request.data,
                   "folder with shards; not given: the data the run was trained on")
      ->type_name("DIR");
  command->add_option("--tokens", flags->request.tokens, "at most [all validation tokens]")
      ->type_name("tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 52).description(""));
  command->add_option("--device-batch-size", flags->request.batch, "sequences at once [8]")
      ->type_name("sequences")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""));
  command->add_option("--device", flags->device, "cpu, cuda, or ref (float64 reference) [cpu]");
  command->add_option("--threads", flags->threads, "CPU threads")
      ->type_name("INT")
      ->check(CLI::Range(1, 4096).description(""));
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->footer("Example: tightloop eval runs/20260101-quick-abc123");
  command->allow_extras();
  command->callback([flags, &runner] { runner = [flags] { return run_eval(*flags); }; });
}

}  // namespace tightloop::cli
