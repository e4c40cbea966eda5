#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tightloop/cli/app.h"
#include "tightloop/core/build_info.h"
#include "tightloop/core/cuda_device.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/host_info.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/program/differentiate.h"
#include "tightloop/text/split.h"
#include "tightloop/text/tokenizer.h"
#include "tightloop/train/programs.h"

namespace tightloop::cli {
namespace {

using namespace std::string_view_literals;

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct DoctorFlags {
  std::string run_dir = "runs";
  bool json = false;
};

/// One part of the self-test; `detail` says what was seen, or what went wrong.
struct Check {
  std::string name;
  bool ok = false;
  std::string detail;
  double ms = 0.0;
};

/// Runs `test`, which returns its detail and throws Error when something is wrong.
template <typename Test>
Check check(std::string name, Test&& test) {
  Check c{std::move(name), false, "", 0.0};
  const Clock::time_point start = Clock::now();
  try {
    c.detail = test();
    c.ok = true;
  } catch (const std::exception& e) {
    c.detail = e.what();
  }
  c.ms = 1e3 * std::chrono::duration<double>(Clock::now() - start).count();
  return c;
}

// ---- a tiny model, forward and backward ----

struct Gradients {
  double loss = 0.0;
  std::vector<std::string> names;
  std::vector<std::vector<double>> values;  // by parameter
};

/// Loss and gradients of a model of three layers on random tokens, every parameter random, after
/// `runs` runs of the same micro-step.
Gradients tiny_gradients(Device device, std::vector<std::string> rewrites, int runs = 1) {
  TrainProgramsSpec spec{
      .model = nanochat_from_depth(Recipe::nanochat_2026_07, 3, 21, 32, 32, 250, "L"),
      .batch = 2,
      .rewrites = std::move(rewrites),
      .rewrite_options = {.ce_chunk_bytes = 32 << 10},  // several chunks even here
      .device = device};
  std::vector<ParameterGroup> groups(1);
  groups[0].name = "all";
  groups[0].beta1 = groups[0].beta2 = 0.9;
  for (const NanochatParameter& p : nanochat_parameters(spec.model))
    groups[0].parameters.push_back(p.name);
  const TrainPrograms programs = build_train_programs(spec, groups);
  const PlannedProgram& micro = programs.first_micro_step;
  for (const RewriteReport& r : micro.reports) {
    if (r.applied.empty())
      fail(ErrorKind::internal, "rewrite {} did not apply: {}", r.name,
           r.not_applied.empty() ? "no site" : r.not_applied[0]);
  }
  const SlotStore slots(programs.slots, device);
  const Workspace workspace({&micro.plan});
  Executable run(micro.program, micro.plan, slots, workspace);

  for (NanochatParameter p : programs.parameters) {
    if (p.init.kind == Init::Kind::zero) p.init = {Init::Kind::normal, 0.0, 0.05};
    init_parameter(p, 1, slots.host(p.name));
    slots.push(p.name);
  }
  init_rope_table(spec.model, slots.host("rope_table"));
  const TensorView tokens = slots.host(kTokensSlot), targets = slots.host(kTargetsSlot);
  Rng rng(2, 0);
  for (int64_t i = 0; i < tokens.elems(); ++i) {
    set_element(tokens, i, static_cast<double>(rng.below(250)));
    set_element(targets, i, static_cast<double>(rng.below(250)));
  }
  set_element(slots.host(kLossScaleSlot), 0, 1.0 / static_cast<double>(tokens.elems()));
  for (const std::string_view filled : {"rope_table"sv, kTokensSlot, kTargetsSlot, kLossScaleSlot})
    slots.push(filled);
  for (int i = 0; i < runs; ++i) run.run();

  Gradients g;
  g.loss = get_element(slots.pull(kLossSlot), 0);
  for (const NanochatParameter& p : programs.parameters) {
    const TensorView grad = slots.pull(grad_name(p.name));
    std::vector<double> values(static_cast<size_t>(grad.elems()));
    for (int64_t i = 0; i < grad.elems(); ++i)
      values[static_cast<size_t>(i)] = get_element(grad, i);
    g.names.push_back(p.name);
    g.values.push_back(std::move(values));
  }
  return g;
}

std::vector<std::string> every_rewrite() {
  std::vector<std::string> names;
  for (const Rewrite& rewrite : all_rewrites()) names.emplace_back(rewrite.name);
  return names;
}

/// Error{numeric} when `got` on `device` is too far from the reference.
std::string compare_with_reference(const Gradients& got, Device device) {
  constexpr double kLossTolerance = 1e-6, kGradTolerance = 1e-4;
  const Gradients truth = tiny_gradients(Device::ref, {});
  const double loss_error = std::abs(got.loss - truth.loss) / std::abs(truth.loss);
  if (!(loss_error <= kLossTolerance))
    fail(ErrorKind::numeric, "the loss is {} on {} and {} on ref: relative error {:.1e} > {:.0e}",
         got.loss, name_of(device), truth.loss, loss_error, kLossTolerance);
  double worst = 0.0;
  for (size_t p = 0; p < truth.values.size(); ++p) {
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < truth.values[p].size(); ++i) {
      const double d = got.values[p][i] - truth.values[p][i];
      difference += d * d;
      norm += truth.values[p][i] * truth.values[p][i];
    }
    const double error = std::sqrt(difference / std::max(norm, 1e-300));
    if (!(error <= kGradTolerance))
      fail(ErrorKind::numeric, "the gradient of '{}': relative error {:.1e} > {:.0e}",
           truth.names[p], error, kGradTolerance);
    worst = std::max(worst, error);
  }
  return fmt::format("{} rewrites, loss error {:.1e}, worst of {} gradients {:.1e}",
                     all_rewrites().size(), loss_error, truth.names.size(), worst);
}

std::string check_gradients() {
  return compare_with_reference(tiny_gradients(Device::cpu, every_rewrite()), Device::cpu);
}

/// The second run of a Program on cuda is the launch of a graph.
std::string check_cuda() {
  const Gradients once = tiny_gradients(Device::cuda, every_rewrite());
  const Gradients replayed = tiny_gradients(Device::cuda, every_rewrite(), 2);
  if (once.loss != replayed.loss || once.values != replayed.values)
    fail(ErrorKind::numeric, "loss or gradients differ between single launches and a graph");
  return compare_with_reference(once, Device::cuda) + ", same bits as a graph";
}

std::string check_same_bits() {
  const int threads = thread_count();
  const Gradients many = tiny_gradients(Device::cpu, every_rewrite());
  set_thread_count(1);
  const Gradients one = tiny_gradients(Device::cpu, every_rewrite());
  set_thread_count(threads);
  if (many.loss != one.loss || many.values != one.values)
    fail(ErrorKind::numeric, "loss or gradients differ between 1 and {} threads", threads);
  return fmt::format("loss and gradients have the same bits with 1 and {} threads", threads);
}

std::string check_tokenizer() {
  // "th" "the" " the": three merges are enough to take every path.
  const std::vector<std::pair<int32_t, int32_t>> merges{{'t', 'h'}, {256, 'e'}, {' ', 257}};
  const Tokenizer made = Tokenizer::byte_level(merges, kNanochatSplit, {"<|bos|>"});
  const Tokenizer tokenizer = Tokenizer::from_json(made.to_json());
  const std::string text =
      "the 12 naïve cats \xe6\xbc\xa2 don't\n\t\xf0\x9f\x90\x88 \xff<|bos|> the";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  if (tokenizer.content_hash() != made.content_hash() || made.encode(text) != ids)
    fail(ErrorKind::data, "a tokenizer differs after it was written and read");
  if (ids.front() != 257 || ids.back() != 258)
    fail(ErrorKind::data, "merges were not applied: first id {}, last {}", ids.front(), ids.back());
  if (tokenizer.decode(ids) != text)
    fail(ErrorKind::data, "decoding '{}' gave '{}'", text, tokenizer.decode(ids));
  return fmt::format("{} bytes to {} tokens and back", text.size(), ids.size());
}

/// The folder, or its nearest parent that exists.
std::string nearest_folder(const std::string& path) {
  fs::path at = fs::absolute(path);
  std::error_code ignored;
  while (!fs::is_directory(at, ignored) && at != at.root_path()) at = at.parent_path();
  return at.string();
}

std::string check_files(const std::string& folder) {
  std::string pattern = (fs::path(folder) / ".tightloop-doctor-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) fail_errno(errno, "make a folder in", folder);
  struct Cleaner {
    std::string path;
    ~Cleaner() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } cleaner{pattern};
  const std::string file = pattern + "/file";
  write_file_atomically(file, "old");
  const std::string text(1 << 20, 'x');
  write_file_atomically(file, text);
  if (read_file(file) != text) fail(ErrorKind::io, "{}: read back other bytes", file);
  PendingDirectory pending(pattern + "/folder");
  write_file_atomically(pending.path() + "/part", text);
  pending.publish();
  check_complete_directory(pattern + "/folder");
  return fmt::format("write, sync and rename in {}", folder);
}

// ---- the report ----

double load_average() {
  double load = 0.0;
  return ::getloadavg(&load, 1) == 1 ? load : 0.0;
}

/// The CUDA device, or why there is none.
struct Gpu {
  std::optional<cuda::DeviceInfo> device;
  int64_t free_bytes = 0;
  std::string reason, hint;
};

Gpu find_gpu() {
  Gpu gpu;
  try {
    gpu.device = cuda::device_info();
    gpu.free_bytes = cuda::free_bytes();
  } catch (const Error& e) {
    gpu.device.reset();
    gpu.reason = e.message();
    gpu.hint = e.hint();
  }
  return gpu;
}

struct Findings {
  HostInfo host;
  Gpu gpu;
  std::vector<std::string> features;  // vector instructions that kernels use
  Ceilings ceilings;
  double load = 0.0;
  std::string home;
  int64_t disk_free = 0;
  std::vector<Check> checks;
  std::vector<std::string> hints;
};

bool has_feature(const HostInfo& host, std::string_view name) {
  return std::find(host.cpu_flags.begin(), host.cpu_flags.end(), name) != host.cpu_flags.end();
}

void add_hints(Findings& f) {
  const auto hint = [&](std::string text) { f.hints.push_back(std::move(text)); };
  if (build_info().build_type != "Release")
    hint(
        fmt::format("this is a {} build: figures mean little; build with "
                    "-DCMAKE_BUILD_TYPE=Release",
                    build_info().build_type));
  if (f.host.logical_cpus == 1) hint("only one core may be used here: training runs on one thread");
  if (thread_count() < f.host.logical_cpus)
    hint(fmt::format("{} of {} cores are used; unset OMP_NUM_THREADS or give --threads {}",
                     thread_count(), f.host.logical_cpus, f.host.logical_cpus));
  if (thread_count() > f.host.logical_cpus)
    hint(fmt::format("{} threads on {} cores wait for each other; set OMP_NUM_THREADS={}",
                     thread_count(), f.host.logical_cpus, f.host.logical_cpus));
  if (gemm_kernel_name() == "portable")
    hint("no AVX2, AVX-512 or NEON: matrix products run on portable code, several times slower");
  if (f.load > 0.5 * f.host.logical_cpus)
    hint(
        fmt::format("other programs are running (load {:.1f} on {} cores): ceilings and every "
                    "timing here come out too low",
                    f.load, f.host.logical_cpus));
  if (f.host.memory_available_bytes < int64_t{1} << 30)
    hint(fmt::format("{} of memory are free: `tightloop train --preset quick` fits, not much more",
                     human_bytes(static_cast<double>(f.host.memory_available_bytes))));
  if (cuda::built() && !f.gpu.hint.empty()) hint(f.gpu.hint);
  if (f.disk_free < int64_t{1} << 30)
    hint(fmt::format("{} of disk are free for runs: put them elsewhere with --run-dir",
                     human_bytes(static_cast<double>(f.disk_free))));
}

Findings examine(const DoctorFlags& flags) {
  Findings f;
  f.load = load_average();
  f.host = host_info();
  for (std::string_view name : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16",
                                "avx512_vnni", "amx_bf16", "asimd", "sve"}) {
    if (has_feature(f.host, name)) f.features.emplace_back(name);
  }
  f.gpu = find_gpu();
  f.home = home_folder();
  const std::string folder = nearest_folder(flags.run_dir);
  f.disk_free = free_disk_bytes(folder);
  f.ceilings = measure_ceilings(0.5);
  f.checks.push_back(check("gradients", check_gradients));
  f.checks.push_back(check("same bits", check_same_bits));
  if (f.gpu.device) f.checks.push_back(check("cuda", check_cuda));
  f.checks.push_back(check("tokenizer", check_tokenizer));
  f.checks.push_back(check("files", [&] { return check_files(folder); }));
  add_hints(f);
  return f;
}

void show(const Findings& f, const DoctorFlags& flags) {
  const BuildInfo& build = build_info();
  const auto row = [](std::string_view name, const std::string& value) {
    out(fmt::format("  {:<10} {}\n", name, value));
  };
  out("build\n");
  row("version", fmt::format("{} ({})", build.version, build.commit));
  row("compiler", fmt::format("{}, {}, {}", build.compiler, build.build_type, build.system));
  row("flags", std::string(build.flags));
  out("\nmachine\n");
  row("system", fmt::format("{}, {}", f.host.os, f.host.kernel));
  row("cpu", f.host.cpu_model);
  row("cores",
      fmt::format(
          "{} for this process{}, {} threads, load {:.1f}", f.host.logical_cpus,
          f.host.physical_cores ? fmt::format(" ({} in the machine)", *f.host.physical_cores) : "",
          thread_count(), f.load));
  row("vectors",
      f.features.empty() ? "none that kernels use" : fmt::format("{}", joined(f.features, " ")));
  row("gemm", fmt::format("{} kernel", gemm_kernel_name()));
  std::string caches;
  for (const CacheInfo& c : f.host.caches) {
    if (c.kind == "Instruction") continue;
    caches += fmt::format("{}L{} {}", caches.empty() ? "" : ", ", c.level,
                          human_bytes(static_cast<double>(c.bytes)));
    if (c.shared_by_cpus > 1) caches += fmt::format(" (shared by {})", c.shared_by_cpus);
  }
  row("caches", caches.empty() ? "unknown" : caches);
  row("memory",
      fmt::format("{}, {} free", human_bytes(static_cast<double>(f.host.memory_total_bytes)),
                  human_bytes(static_cast<double>(f.host.memory_available_bytes))));
  if (const auto& d = f.gpu.device)
    row("gpu", fmt::format("{}, sm_{}{}, {} multiprocessors, {}, {} free; CUDA {} (driver's {})",
                           d->name, d->compute_major, d->compute_minor, d->multiprocessors,
                           human_bytes(static_cast<double>(d->total_bytes)),
                           human_bytes(static_cast<double>(f.gpu.free_bytes)), d->runtime_version,
                           d->driver_version));
  else
    row("gpu", f.gpu.reason);
  row("disk",
      fmt::format("{} free for {}", human_bytes(static_cast<double>(f.disk_free)), flags.run_dir));
  row("data", fmt::format("{}{}", f.home, std::getenv("TL_HOME") != nullptr ? " (TL_HOME)" : ""));
  out(fmt::format("\nceilings, measured with {} threads\n", f.ceilings.threads));
  row("fma", fmt::format("{:.1f} GFLOP/s f32 ({})", f.ceilings.fma_gflops, f.ceilings.fma_kernel));
  row("read", fmt::format("{:.1f} GB/s", f.ceilings.read_gbs));
  row("copy", fmt::format("{:.1f} GB/s read and written", f.ceilings.copy_gbs));
  row("update", fmt::format("{:.1f} GB/s read and written, in place", f.ceilings.update_gbs));
  out("\nself-test\n");
  for (const Check& c : f.checks)
    out(fmt::format("  {:<4} {:<10} {}  [{:.0f} ms]\n", c.ok ? "ok" : "FAIL", c.name, c.detail,
                    c.ms));
  for (const std::string& hint : f.hints) out("\nhint: " + hint);
  if (!f.hints.empty()) out("\n");
}

OrderedJson to_json(const Findings& f, const DoctorFlags& flags) {
  const BuildInfo& build = build_info();
  OrderedJson json;
  json["v"] = 1;
  json["build"] = {{"version", build.version},   {"commit", build.commit},
                   {"compiler", build.compiler}, {"flags", build.flags},
                   {"type", build.build_type},   {"system", build.system}};
  OrderedJson machine;
  machine["os"] = f.host.os;
  machine["kernel"] = f.host.kernel;
  machine["cpu"] = f.host.cpu_model;
  machine["logical_cpus"] = f.host.logical_cpus;
  if (f.host.physical_cores) machine["physical_cores"] = *f.host.physical_cores;
  machine["threads"] = thread_count();
  machine["load"] = f.load;
  machine["cpu_features"] = f.features;
  machine["gemm_kernel"] = gemm_kernel_name();
  OrderedJson caches = OrderedJson::array();
  for (const CacheInfo& c : f.host.caches)
    caches.push_back({{"level", c.level},
                      {"kind", c.kind},
                      {"bytes", c.bytes},
                      {"shared_by_cpus", c.shared_by_cpus}});
  machine["caches"] = caches;
  machine["memory_total_bytes"] = f.host.memory_total_bytes;
  machine["memory_available_bytes"] = f.host.memory_available_bytes;
  json["machine"] = machine;
  OrderedJson gpu;
  gpu["built"] = cuda::built();
  if (const auto& d = f.gpu.device)
    gpu["device"] = {
        {"name", d->name},
        {"compute_capability", fmt::format("{}.{}", d->compute_major, d->compute_minor)},
        {"multiprocessors", d->multiprocessors},
        {"memory_total_bytes", d->total_bytes},
        {"memory_free_bytes", f.gpu.free_bytes},
        {"driver_cuda", d->driver_version},
        {"runtime_cuda", d->runtime_version}};
  else
    gpu["reason"] = f.gpu.reason;
  json["cuda"] = gpu;
  json["run_dir"] = flags.run_dir;
  json["disk_free_bytes"] = f.disk_free;
  json["data_dir"] = f.home;
  json["ceilings"] = {{"fma_gflops", f.ceilings.fma_gflops}, {"read_gbs", f.ceilings.read_gbs},
                      {"copy_gbs", f.ceilings.copy_gbs},     {"update_gbs", f.ceilings.update_gbs},
                      {"threads", f.ceilings.threads},       {"fma_kernel", f.ceilings.fma_kernel}};
  OrderedJson checks = OrderedJson::array();
  for (const Check& c : f.checks)
    checks.push_back({{"name", c.name}, {"ok", c.ok}, {"detail", c.detail}, {"ms", c.ms}});
  json["checks"] = checks;
  json["hints"] = f.hints;
  json["ok"] = std::all_of(f.checks.begin(), f.checks.end(), [](const Check& c) { return c.ok; });
  return json;
}

int run_doctor(const DoctorFlags& flags) {
  const Findings f = examine(flags);
  if (flags.json)
    out(to_json(f, flags).dump(2) + "\n");
  else
    show(f, flags);
  const auto failed =
      std::count_if(f.checks.begin(), f.checks.end(), [](const Check& c) { return !c.ok; });
  if (failed == 0) return kDone;
  talk(fmt::format("\n{} of {} self-tests failed\n", failed, f.checks.size()));
  return kEnvironment;
}

}  // namespace

void add_doctor(CLI::App& app, Runner& runner) {
  auto* command = app.add_subcommand("doctor", "what this machine has, and a 5-second self-test");
  auto flags = std::make_shared<DoctorFlags>();
  command->add_option("--run-dir", flags->run_dir, "where run folders would be made [runs]");
  command->add_flag("--json", flags->json, "one JSON object on stdout");
  command->footer(
      "Example: tightloop doctor --json > doctor.json\n"
      "Exit code 3 when a self-test fails.");
  command->allow_extras();
  command->callback([flags, &runner] { runner = [flags] { return run_doctor(*flags); }; });
}

}  // namespace tightloop::cli
