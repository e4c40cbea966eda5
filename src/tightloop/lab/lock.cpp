#include "tightloop/lab/lock.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/sha256.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/csv.h"
#include "tightloop/lab/statistics.h"

namespace tightloop {
namespace {

OrderedJson content(const TargetLock& lock) {
  OrderedJson json;
  json["format"] = kLockFormat;
  json["metric"] = lock.metric;
  json["threshold"] = lock.threshold;
  json["direction"] = "below";
  json["smoothing"] = "none";
  json["eval_tokens"] = lock.eval_tokens;
  json["eval_rule"] =
      "every max(1, round(steps / 130)) steps from 0.75 to 1.20 of the baseline's crossing";
  json["max_seq_len"] = lock.max_seq_len;
  json["data_sha256"] = lock.data_sha256;
  json["tokenizer_sha256"] = lock.tokenizer_sha256;
  json["byte_count"] = "UTF-8 bytes of the tokens; special tokens have none";
  json["world_size"] = 1;
  if (lock.floor) json["floor"] = *lock.floor;
  json["metric_sd"] = lock.metric_sd;
  json["metric_sd_df"] = lock.metric_sd_df;
  json["crossing_progress"] = lock.crossing_progress;
  json["method"] = lock.method;
  json["runs"] = lock.runs;
  json["created"] = lock.created;
  return json;
}

}  // namespace

std::string TargetLock::hash() const {
  return sha256_hex(content(*this).dump());
}

std::string TargetLock::eval_hash() const {
  OrderedJson json = content(*this), judge;
  for (const char* key : {"metric", "smoothing", "eval_tokens", "max_seq_len", "data_sha256",
                          "tokenizer_sha256", "byte_count", "world_size"})
    judge[key] = json[key];
  return sha256_hex(judge.dump()).substr(0, 16);
}

OrderedJson to_json(const TargetLock& lock) {
  OrderedJson json = content(lock);
  json["hash"] = lock.hash();
  if (!lock.command.empty()) json["command"] = lock.command;
  return json;
}

void save_lock(const std::string& path, const TargetLock& lock) {
  write_file_atomically(path, to_json(lock).dump(1) + "\n");
}

TargetLock parse_lock(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  if (const int64_t format = get_int(json, "format", name); format != kLockFormat)
    throw Error(ErrorKind::data,
                fmt::format("{}: format {}, expected {}", name, format, kLockFormat))
        .with_hint("another version of tightloop made it: use a new lab folder (--lab-dir)");
  TargetLock lock;
  lock.metric = get_string(json, "metric", name);
  lock.threshold = get_double(json, "threshold", name);
  lock.eval_tokens = get_int(json, "eval_tokens", name);
  lock.max_seq_len = get_int(json, "max_seq_len", name);
  lock.data_sha256 = get_string(json, "data_sha256", name);
  lock.tokenizer_sha256 = get_string(json, "tokenizer_sha256", name);
  if (find_field(json, "floor", name) != nullptr) lock.floor = get_double(json, "floor", name);
  lock.metric_sd = get_double(json, "metric_sd", name);
  lock.metric_sd_df = get_double(json, "metric_sd_df", name);
  lock.crossing_progress = get_double(json, "crossing_progress", name);
  lock.method = get_string(json, "method", name);
  for (const Json& run : get_array(json, "runs", name)) {
    if (!run.is_string()) fail(ErrorKind::data, "{}: runs holds what is no text", name);
    lock.runs.push_back(run.get<std::string>());
  }
  lock.created = get_string(json, "created", name);
  lock.command = get_string(json, "command", name, "");
  if (lock.metric != "val_bpb" && lock.metric != "val_loss")
    fail(ErrorKind::data, "{}: metric '{}' must be val_bpb or val_loss", name, lock.metric);
  if (get_string(json, "hash", name) != lock.hash())
    throw Error(ErrorKind::data, fmt::format("{}: its hash is not that of its content", name))
        .with_hint("a lock is never edited: make another one in a new folder with --lab-dir");
  return lock;
}

TargetLock load_lock(const std::string& path) {
  try {
    return parse_lock(read_file(path, 1 << 20), path);
  } catch (Error& e) {
    if (e.kind() == ErrorKind::data)
      e.with_hint(
          "put the file back as it was; another target needs another folder: `tightloop "
          "lab lock --lab-dir DIR`");
    throw;
  }
}

void expect_same_evaluation(const TargetLock& lock,
                            const ValidationData& run,
                            int64_t max_seq_len,
                            const std::string& lab_dir) {
  const auto expect = [&](std::string_view what, const auto& then, const auto& now) {
    if (then == now) return;
    throw Error(ErrorKind::usage,
                fmt::format("the target of '{}' was locked with {} {}, and this run has {}: their "
                            "{} cannot be compared",
                            lab_dir, what, then, now, lock.metric))
        .with_hint(fmt::format("run with what it was locked with, or fix another target: "
                               "`tightloop lab lock --lab-dir {}-2 ...`",
                               lab_dir));
  };
  expect("--max-seq-len", lock.max_seq_len, max_seq_len);
  expect("--eval-tokens", lock.eval_tokens, run.tokens);
  expect("validation data (SHA-256)", lock.data_sha256, run.data_sha256);
  expect("the tokenizer (SHA-256)", lock.tokenizer_sha256, run.tokenizer_sha256);
}

std::pair<double, double> metric_spread(std::span<const BaselineCurve> baselines, double progress) {
  std::map<int64_t, std::vector<double>> at_step;
  for (const BaselineCurve& curve : baselines) {
    for (const MeasuredPoint& p : curve.points) {
      const double at = static_cast<double>(p.step) / static_cast<double>(curve.steps);
      if (std::abs(at - progress) <= 0.05 && std::isfinite(p.metric))
        at_step[p.step].push_back(p.metric);
    }
  }
  double variance = 0.0, count = 0.0, df = 0.0;
  for (const auto& [step, values] : at_step) {
    if (values.size() < 2) continue;
    const Sample s = sample_of(values);
    variance += s.sd * s.sd;
    count += 1.0;
    df = std::max(df, static_cast<double>(s.n - 1));
  }
  return {count > 0.0 ? std::sqrt(variance / count) : 0.0, df};
}

LockDerivation derive_threshold(std::span<const BaselineCurve> baselines) {
  if (baselines.size() < 2)
    throw Error(
        ErrorKind::usage,
        fmt::format("a target is derived from at least 2 baselines, not {}", baselines.size()))
        .with_hint("`tightloop lab lock --seeds 1,2,3`");
  std::vector<double> best;
  for (const BaselineCurve& curve : baselines) {
    double least = INFINITY;
    for (const MeasuredPoint& p : curve.points) least = std::fmin(least, p.metric);
    if (!std::isfinite(least) || curve.steps < 1)
      fail(ErrorKind::data, "baseline {} has no finite evaluation", curve.run_id);
    best.push_back(least);
  }
  const double centre = median_of(best);
  std::optional<LockDerivation> quietest;
  double least_noise = INFINITY;
  for (int k = 0; k <= 2 * 90; ++k) {
    // 0, +1, -1, +2, -2, ... powers of 1.1 away from where the search starts
    const int power = k % 2 == 1 ? (k + 1) / 2 : -(k / 2);
    LockDerivation d{.offset = kLockOffset * std::pow(1.1, power)};
    d.threshold = centre + d.offset;
    std::vector<double> progress;
    for (int pass = 0; pass < 2; ++pass) {  // the noise is wanted where the curves cross
      d.checks.clear();
      progress.clear();
      for (const BaselineCurve& curve : baselines) {
        const Crossing c = find_crossing(curve.points, d.threshold, d.metric_sd);
        if (c.status != Crossing::Status::crossed) break;
        d.checks.push_back({.run_id = curve.run_id,
                            .progress = c.steps / static_cast<double>(curve.steps),
                            .noise_share = d.metric_sd / std::abs(c.slope) / c.train_sec});
        progress.push_back(d.checks.back().progress);
      }
      if (progress.size() != baselines.size()) break;
      d.crossing_progress = median_of(progress);
      std::tie(d.metric_sd, d.metric_sd_df) = metric_spread(baselines, d.crossing_progress);
    }
    if (progress.size() != baselines.size()) continue;
    double noise = 0.0;
    bool inside = true;
    for (const LockCheck& check : d.checks) {
      inside = inside && check.progress >= kLockEarliest && check.progress <= kLockLatest;
      noise = std::max(noise, check.noise_share);
    }
    if (!inside) continue;
    d.quiet = noise <= kLockNoise;
    if (d.quiet) return d;
    if (noise < least_noise) {
      least_noise = noise;
      quietest = d;
    }
  }
  if (!quietest)
    throw Error(ErrorKind::usage,
                fmt::format("no threshold is crossed by all {} baselines between {:.0f} % and "
                            "{:.0f} % of their steps",
                            baselines.size(), 100 * kLockEarliest, 100 * kLockLatest))
        .with_hint("evaluate more often (--eval-every) or train longer (--num-iterations)");
  return *quietest;
}

EvalWindow dense_evaluations(int64_t steps, double crossing_progress) {
  const double n = static_cast<double>(steps);
  EvalWindow window;
  window.every = std::max<int64_t>(1, std::llround(n / 130.0));
  window.first = std::max<int64_t>(1, std::llround(0.75 * crossing_progress * n));
  window.last = std::min<int64_t>(steps, std::llround(1.20 * crossing_progress * n));
  window.last = std::max(window.last, window.first);
  return window;
}

const ShippedLock* shipped_lock(std::string_view preset) {
  // From 4 seeds of the unfused reference, which cross at 78 to 88 % of their steps.
  static constexpr ShippedLock kLocks[] = {{"quick-lab", 0.63, 0.012, 3.0, 0.82}};
  for (const ShippedLock& lock : kLocks) {
    if (lock.preset == preset) return &lock;
  }
  return nullptr;
}

}  // namespace tightloop
