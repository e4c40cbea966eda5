#include <chrono>
#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/cuda_device.h"
#include "tightloop/core/json.h"
#include "tightloop/engine/rewrite/rewrite.h"
#include "tightloop/train/check_case.h"

namespace tightloop::cli {
namespace {

struct CheckFlags {
  std::vector<std::string> folders;
  std::string device = "both";
  std::string dtype = "f32";
  std::string arch = "native";
  std::string rewrites = "sweep";
  bool verbose = false;
  bool json = false;
};

std::vector<Device> devices_of(const CheckFlags& flags) {
  const DType dtype = parse_dtype(flags.dtype);
  if (dtype != DType::f32 && dtype != DType::bf16)
    fail(ErrorKind::usage, "--dtype {}: expected f32 or bf16", flags.dtype);
  // ref computes in float64 whatever the type.
  if (dtype == DType::bf16 && flags.device != "cuda")
    throw Error(ErrorKind::usage, "--dtype bf16 computes on cuda only")
        .with_hint("add `--device cuda`, or leave --dtype out");
  if (flags.device == "both") return {Device::ref, Device::cpu};
  return {parse_device(flags.device)};
}

std::vector<std::vector<std::string>> sets_of(const std::string& text) {
  if (text == "sweep") return rewrite_sweep(1);
  if (text == "none") return {{}};
  std::vector<std::string> all;
  for (const Rewrite& rewrite : all_rewrites()) all.emplace_back(rewrite.name);
  if (text == "all") return {all};
  std::vector<std::string> names = CLI::detail::split(text, ',');
  for (const std::string& name : names) {
    if (std::find(all.begin(), all.end(), name) != all.end()) continue;
    throw Error(ErrorKind::usage, fmt::format("--rewrites: unknown rewrite '{}'", name))
        .with_hint(fmt::format("one of: sweep, none, all, or a list of {}", joined(all, ", ")));
  }
  return {names};
}

OrderedJson to_json(const CaseReport& r) {
  OrderedJson json;
  json["case"] = r.folder;
  json["device"] = name_of(r.device);
  json["dtype"] = name_of(r.dtype);
  json["rewrites"] = r.rewrites;
  json["ok"] = r.ok();
  json["failures"] = r.failures;
  OrderedJson quantities = OrderedJson::array();
  for (const CaseQuantity& q : r.quantities)
    quantities.push_back({{"name", q.name}, {"error", q.error}, {"tolerance", q.tolerance}});
  json["quantities"] = quantities;
  return json;
}

void show(const CaseReport& r, bool verbose) {
  const CaseQuantity* worst = r.worst();
  out(fmt::format("{}  {}  {}{}  [{}]  worst {} {:.2e} of {:.0e}\n", r.ok() ? "ok  " : "FAIL",
                  r.folder, name_of(r.device), r.dtype == DType::f32 ? "" : " bf16",
                  r.rewrites.empty() ? "no rewrite" : joined(r.rewrites, " "),
                  worst == nullptr ? "-" : worst->name, worst == nullptr ? 0.0 : worst->error,
                  worst == nullptr ? 0.0 : worst->tolerance));
  for (const std::string& failure : r.failures) out("      " + failure + "\n");
  for (const CaseQuantity& q : r.quantities) {
    if (verbose || !q.ok())
      out(fmt::format("      {} {}: {:.3e}, tolerance {:.0e}\n", q.ok() ? "ok  " : "FAIL", q.name,
                      q.error, q.tolerance));
  }
}

int run_check(const CheckFlags& flags) {
  if (flags.folders.empty())
    throw Error(ErrorKind::usage, "no case was given")
        .with_hint("`tightloop check tests/golden/*`");
  if (flags.arch != "native" && flags.arch != "generic")
    fail(ErrorKind::usage, "--arch {}: expected native or generic", flags.arch);
  cuda::set_generic_arch(flags.arch == "generic");
  const std::vector<Device> devices = devices_of(flags);
  int failed = 0, ran = 0;
  const auto take = [&](const CaseReport& report) {
    ++ran;
    failed += report.ok() ? 0 : 1;
    flags.json ? out(to_json(report).dump() + "\n") : show(report, flags.verbose);
  };
  for (const std::string& folder : flags.folders) {
    if (!std::filesystem::exists(folder + "/case.json"))
      throw Error(ErrorKind::io,
                  fmt::format("'{}' is no parity case: {}", folder,
                              std::filesystem::exists(folder) ? "expected a folder with a case.json"
                                                              : "no such folder"))
          .with_hint("`tightloop check tests/golden/*` runs the ones of the source tree");
  }
  for (const std::string& folder : flags.folders) {
    if (case_kind(folder) == "bpe") {
      take(run_tokenizer_case(folder));
      continue;
    }
    for (Device device : devices) {
      for (const std::vector<std::string>& set : sets_of(flags.rewrites))
        take(run_nanochat_case(
            folder, {.device = device, .rewrites = set, .dtype = parse_dtype(flags.dtype)}));
    }
  }
  if (!flags.json) out(fmt::format("{} runs, {} failed\n", ran, failed));
  return failed == 0 ? kDone : kJudgedFailed;
}

}  // namespace

void add_check(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand("check", "run parity cases against their expected values");
  auto flags = std::make_shared<CheckFlags>();
  command->add_option("case", flags->folders, "case folders (case.json inside)")->type_name("CASE");
  command->add_option("--device", flags->device, "ref, cpu, both of these, or cuda [both]");
  command->add_option("--dtype", flags->dtype,
                      "f32, or bf16 on cuda, with the wide tolerances of bf16 [f32]");
  command->add_option("--arch", flags->arch,
                      "native, or generic: on cuda only what every supported GPU has [native]");
  command->add_option("--rewrites", flags->rewrites,
                      "sweep (none, each, pairs, all, 16 random sets), none, all, or names with "
                      "commas [sweep]");
  command->add_flag("-v,--verbose", flags->verbose, "every quantity, not only the worst");
  command->add_flag("--json", flags->json, "one JSON object per run on stdout");
  command->footer(
      "Example: tightloop check tests/golden/* --device cpu --rewrites all\n"
      "Exit code 1 when a quantity is out of tolerance, or a rewrite applies nowhere.");
  command->allow_extras();
  command->callback([flags, &runner] { runner = [flags] { return run_check(*flags); }; });
}

}  // namespace tightloop::cli
