#include "tightloop/lab/verdict.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/lab/report/svg.h"
#include "tightloop/lab/run_row.h"

namespace tightloop {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

using Measure = std::optional<double> (*)(const LedgerRow&);

std::optional<double> log_of(std::optional<double> value) {
  return value && *value > 0.0 ? std::optional<double>(std::log(*value)) : std::nullopt;
}
std::optional<double> step_time(const LedgerRow& row) {
  return log_of(row.number("dt_median_ms"));
}
std::optional<double> time_to_target(const LedgerRow& row) {
  return log_of(row.number("time_to_target_sec_measured"));
}
std::optional<double> steps_to_target(const LedgerRow& row) {
  return log_of(row.number("steps_to_target"));
}
std::optional<double> time_per_step_to_target(const LedgerRow& row) {
  const auto t = time_to_target(row), s = steps_to_target(row);
  return t && s ? std::optional<double>(*t - *s) : std::nullopt;
}

/// Repeats of one configuration in one experiment, over the ledger.
template <typename Value>
Pool noise_of(const std::vector<LedgerRow>& rows, const std::string& lock_hash, Value value) {
  std::map<std::string, std::vector<double>> groups;
  for (const LedgerRow& row : rows) {
    if (row.text("status") != "ok" || row.text("lock_hash") != lock_hash) continue;
    if (const std::optional<double> x = value(row))
      groups[row.text("experiment") + " " + row.text("config_hash")].push_back(*x);
  }
  std::vector<std::vector<double>> all;
  for (auto& [name, values] : groups) all.push_back(std::move(values));
  return pooled(all);
}

/// The ok run of each seed of an arm.
std::map<int64_t, const LedgerRow*> runs_of(const std::vector<LedgerRow>& rows,
                                            const std::string& experiment,
                                            const std::string& arm) {
  std::map<int64_t, const LedgerRow*> runs;
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") == experiment && row.text("arm") == arm &&
        row.text("status") == "ok" && row.integer("seed"))
      runs[*row.integer("seed")] = &row;
  }
  return runs;
}

/// Seeds at which a run of either arm failed and none of that arm is ok.
int64_t broken_pairs(const std::vector<LedgerRow>& rows,
                     const std::string& experiment,
                     const std::string& reference,
                     const std::string& candidate) {
  std::set<int64_t> seeds;
  for (const std::string& arm : {reference, candidate}) {
    const auto ok = runs_of(rows, experiment, arm);
    for (const LedgerRow& row : rows) {
      if (row.text("experiment") == experiment && row.text("arm") == arm && row.integer("seed") &&
          row.text("detail") != kLabEnded && !ok.contains(*row.integer("seed")))
        seeds.insert(*row.integer("seed"));
    }
  }
  return static_cast<int64_t>(seeds.size());
}

/// Seeds at which a run of the arm diverged or became non-finite.
std::set<int64_t> unstable_seeds(const std::vector<LedgerRow>& rows,
                                 const std::string& experiment,
                                 const std::string& arm) {
  std::set<int64_t> seeds;
  for (const LedgerRow& row : rows) {
    const std::string status = row.text("status");
    if (row.text("experiment") == experiment && row.text("arm") == arm && row.integer("seed") &&
        (status == "diverged" || status == "nonfinite"))
      seeds.insert(*row.integer("seed"));
  }
  return seeds;
}

using Pairs = std::vector<std::pair<const LedgerRow*, const LedgerRow*>>;

/// The values of the pairs that have both.
struct PairedValues {
  std::vector<double> reference, candidate;

  std::vector<double> differences() const {
    std::vector<double> d(reference.size());
    for (size_t i = 0; i < d.size(); ++i) d[i] = candidate[i] - reference[i];
    return d;
  }
};

template <typename Value>
PairedValues paired_values(const Pairs& pairs, Value value) {
  PairedValues values;
  for (const auto& [reference, candidate] : pairs) {
    const auto a = value(*reference), b = value(*candidate);
    if (!a || !b) continue;
    values.reference.push_back(*a);
    values.candidate.push_back(*b);
  }
  return values;
}

Effect effect(const std::vector<LedgerRow>& rows,
              const Pairs& pairs,
              const std::string& lock_hash,
              Measure measure) {
  const PairedValues values = paired_values(pairs, measure);
  Effect e = effect_of(values.differences(), noise_of(rows, lock_hash, measure));
  e.paired_t = paired_below(values.reference, values.candidate);
  e.welch_t = welch(values.reference, values.candidate);
  return e;
}

std::optional<Effect> effect_if_any(const std::vector<LedgerRow>& rows,
                                    const Pairs& pairs,
                                    const std::string& lock_hash,
                                    Measure measure) {
  Effect e = effect(rows, pairs, lock_hash, measure);
  return e.pairs > 0 ? std::optional<Effect>(std::move(e)) : std::nullopt;
}

double percent(double ln) {
  return 100.0 * std::expm1(ln);
}

std::string signed_percent(double ln) {
  return signed_number(percent(ln), 2);
}

std::string interval(const Effect& e) {
  if (!std::isfinite(e.low)) return "no interval: no repeats";
  return fmt::format("90 % interval {} to {} %", signed_percent(e.low), signed_percent(e.high));
}

std::string amount(double percents) {
  return percents < 10.0 ? fmt::format("{:.1f} %", percents) : fmt::format("{:.0f} %", percents);
}

std::string count(int64_t n, std::string_view word) {
  return fmt::format("{} {}{}", n, word, n == 1 ? "" : "s");
}

std::string words(const ArmVerdict& v, const TargetLock& lock, const std::string& experiment) {
  const Effect& e = v.step_time;
  if (e.pairs == 0)
    return fmt::format("No pair of finished runs{}.",
                       v.unstable_pairs > 0 ? ": it diverged or became non-finite" : "");
  std::string text = fmt::format("Time per step {} % against {} ({}), {}", signed_percent(e.mean),
                                 reference_name(), interval(e), count(e.pairs, "pair"));
  if (e.all_lower)
    text += fmt::format(", all lower (by chance: 1 in {:.0f})", 1.0 / sign_probability(e.pairs));
  else if (e.all_higher)
    text += fmt::format(", all higher (by chance: 1 in {:.0f})", 1.0 / sign_probability(e.pairs));
  text += ".";

  if (e.noise.df > 0.0) {
    text += fmt::format(
        " Noise: measured repeats only, SD {:.2f} % of a run with {:.0f} degrees of freedom",
        percent(e.noise.sd), e.noise.df);
    text += e.noise.df < kLeastDf
                ? fmt::format("; below {:.0f} nothing is called more than suggestive", kLeastDf)
                : "";
    text += fmt::format(
        ". With these, {} an arm show a difference of {} or more (80 % power) and cannot exclude a "
        "smaller one.",
        count(e.pairs, "seed"), amount(percent(detectable(e.noise, e.pairs))));
  } else {
    text += " Noise: no repeats, so nothing can be shown.";
  }
  if (v.seeds_needed > e.pairs && v.seeds_needed < 1000)
    text += fmt::format(" About {} an arm would settle a difference of the size seen.",
                        count(v.seeds_needed, "seed"));
  else if (v.seeds_needed >= 1000)
    text += " A difference as small as the one seen cannot be settled at this noise.";
  else if (v.answer == Answer::inconclusive && e.noise.df < kLeastDf)
    text += fmt::format(
        " More repeats would name the noise: `tightloop lab run AA --seeds 1..10` in the same "
        "folder.");

  switch (v.loss.result) {
    case LossCheck::Result::equal:
      text += fmt::format(
          " Loss: final {} {} on average, {:.5f} at most in a pair; no difference beyond 3 "
          "standard errors of repeats (SD {:.4f}).",
          lock.metric, signed_number(v.loss.mean, 5), v.loss.largest, v.loss.noise.sd);
      break;
    case LossCheck::Result::differs:
      text += fmt::format(
          " LOSS DIFFERS: final {} {} on average, more than 3 standard errors of repeats (SD "
          "{:.4f}). A rewrite keeps the function: it is at fault, or the runs are short and "
          "amplify "
          "that it rounds elsewhere (in bf16 above all). `tightloop check CASE --rewrites sweep` "
          "and "
          "more seeds tell.",
          lock.metric, signed_number(v.loss.mean, 5), v.loss.noise.sd);
      break;
    case LossCheck::Result::unknown:
      text += fmt::format(" Loss: final {} {} on average; without repeats it cannot be judged.",
                          lock.metric, signed_number(v.loss.mean, 5));
      break;
  }
  if (v.time_to_target && v.steps_to_target && v.time_per_step_to_target)
    text += fmt::format(" Time to target {} % ({}) = steps {} % x time per step on the way {} %.",
                        signed_percent(v.time_to_target->mean), interval(*v.time_to_target),
                        signed_percent(v.steps_to_target->mean),
                        signed_percent(v.time_per_step_to_target->mean));
  else
    text += " Time to target: not reached by both runs of any pair.";
  if (v.broken_pairs > 0)
    text += fmt::format(" {} broken: a run of it failed; see `tightloop lab status`.",
                        count(v.broken_pairs, "pair"));
  if (v.unstable_pairs > 0)
    text += fmt::format(
        " UNSTABLE: at {} it diverged or became non-finite and the reference did not: its speed "
        "elsewhere is no gain.",
        count(v.unstable_pairs, "seed"));
  if (experiment == "AA") text += " Both arms are the same: any difference seen here is noise.";
  return text;
}

}  // namespace

std::string reference_name() {
  return "the unfused reference";
}

std::string verdict_word(const ArmVerdict& v) {
  return fmt::format("{} ({})", name_of(v.answer), name_of(v.evidence));
}

std::string headline(const std::vector<ArmVerdict>& verdicts, const std::string& experiment) {
  // Arms of which the same can be said share a clause, in the order of the arms.
  struct Clause {
    std::string arms, what;
    bool shown = false;
  };
  std::vector<Clause> clauses;
  for (const ArmVerdict& v : verdicts) {
    const Effect& e = v.step_time;
    Clause c{.arms = v.arm};
    if (e.pairs == 0) {
      c.what = "no pair of finished runs";
    } else if (v.evidence == Evidence::none) {
      // The number of seeds once, unless it is another.
      const bool said = std::any_of(verdicts.begin(), verdicts.end(), [&e](const ArmVerdict& o) {
        return o.evidence != Evidence::none && o.step_time.pairs == e.pairs;
      });
      c.what = "no difference shown" + (said ? "" : " (" + count(e.pairs, "seed") + ")");
    } else {
      c.shown = true;
      c.arms += fmt::format(" {:.1f} %", std::abs(percent(e.mean)));
      c.what = fmt::format("{} time per step ({}, {})", e.mean < 0.0 ? "less" : "more",
                           v.answer != Answer::inconclusive              ? name_of(v.answer)
                           : v.loss.result == LossCheck::Result::differs ? "but its loss differs"
                           : v.unstable_pairs > 0 ? "but a run of it diverged"
                                                  : name_of(v.evidence),
                           count(e.pairs, "seed"));
    }
    const auto same = std::find_if(clauses.begin(), clauses.end(),
                                   [&c](const Clause& other) { return other.what == c.what; });
    if (same == clauses.end())
      clauses.push_back(std::move(c));
    else
      same->arms += ", " + c.arms;
  }
  std::stable_partition(clauses.begin(), clauses.end(), [](const Clause& c) { return c.shown; });
  std::string text;
  for (const Clause& c : clauses) {
    const bool others = !c.shown && &c == &clauses.back() && &c != &clauses.front() &&
                        c.arms.find(", ") != std::string::npos;
    text += fmt::format("{}{}{}{}", text.empty() ? "" : "; ", others ? "the others" : c.arms,
                        c.shown ? " " : ": ", c.what);
  }
  if (experiment == "AA") text += "; both arms are the same, so a difference is noise";
  return text;
}

std::optional<double> final_metric(const LedgerRow& row, const TargetLock& lock) {
  return row.number(lock.metric == "val_bpb" ? "final_val_bpb" : "final_val_loss");
}

std::string_view name_of(Evidence evidence) {
  switch (evidence) {
    case Evidence::strong:
      return "strong";
    case Evidence::moderate:
      return "moderate";
    case Evidence::suggestive:
      return "suggestive";
    case Evidence::none:
      return "none";
    case Evidence::harmful:
      return "harmful";
  }
  return "?";
}

std::string_view name_of(Answer answer) {
  switch (answer) {
    case Answer::faster:
      return "FASTER";
    case Answer::slower:
      return "SLOWER";
    case Answer::inconclusive:
      return "INCONCLUSIVE";
  }
  return "?";
}

Effect effect_of(std::span<const double> d, const Pool& noise) {
  Effect e{.pairs = static_cast<int64_t>(d.size()), .low = -kInf, .high = kInf, .noise = noise};
  if (d.empty()) return e;
  e.mean = sample_of(d).mean;
  e.all_lower = std::all_of(d.begin(), d.end(), [](double x) { return x < 0.0; });
  e.all_higher = std::all_of(d.begin(), d.end(), [](double x) { return x > 0.0; });
  if (!(noise.df > 0.0) || !(noise.sd > 0.0)) return e;
  const double error = noise.sd * std::sqrt(2.0 / static_cast<double>(e.pairs));
  e.p_faster = student_t_cdf(e.mean / error, noise.df);
  e.p_slower = student_t_cdf(-e.mean / error, noise.df);
  const double half = student_t_quantile(0.95, noise.df) * error;
  e.low = e.mean - half;
  e.high = e.mean + half;
  return e;
}

Evidence evidence_of(const Effect& e, double adjusted_faster, double adjusted_slower) {
  if (e.noise.df >= kLeastDf) {
    if (adjusted_faster < 0.01 && e.all_lower) return Evidence::strong;
    if (adjusted_faster < 0.05) return Evidence::moderate;
    if (adjusted_slower < 0.05) return Evidence::harmful;
  }
  return e.all_lower || e.all_higher ? Evidence::suggestive : Evidence::none;
}

Answer answer_of(Evidence evidence) {
  if (evidence == Evidence::strong || evidence == Evidence::moderate) return Answer::faster;
  return evidence == Evidence::harmful ? Answer::slower : Answer::inconclusive;
}

double detectable(const Pool& noise, int64_t pairs) {
  if (!(noise.df > 0.0) || pairs < 1) return kInf;
  const double t = student_t_quantile(0.95, noise.df) + student_t_quantile(0.80, noise.df);
  return t * noise.sd * std::sqrt(2.0 / static_cast<double>(pairs));
}

std::vector<ArmVerdict> judge(const std::vector<LedgerRow>& rows,
                              const std::string& experiment,
                              const std::vector<std::string>& arms,
                              const TargetLock& lock) {
  const std::string hash = lock.hash();
  for (const LedgerRow& row : rows) {
    if (row.text("experiment") == experiment && row.text("lock_hash") != hash)
      fail(ErrorKind::usage, "run {} was made under another target than the folder's",
           row.text("run_id"));
  }
  const auto metric = [&lock](const LedgerRow& row) { return final_metric(row, lock); };
  const auto reference = runs_of(rows, experiment, arms.at(0));
  std::vector<ArmVerdict> verdicts;
  for (size_t i = 1; i < arms.size(); ++i) {
    ArmVerdict v{.arm = arms[i]};
    const auto candidate = runs_of(rows, experiment, arms[i]);
    Pairs pairs;
    for (const auto& [seed, run] : reference) {
      if (const auto it = candidate.find(seed); it != candidate.end())
        pairs.emplace_back(run, it->second);
    }
    v.broken_pairs = broken_pairs(rows, experiment, arms[0], arms[i]);
    const std::set<int64_t> reference_unstable = unstable_seeds(rows, experiment, arms[0]);
    for (const int64_t seed : unstable_seeds(rows, experiment, arms[i]))
      v.unstable_pairs += reference_unstable.contains(seed) ? 0 : 1;
    v.step_time = effect(rows, pairs, hash, step_time);
    v.time_to_target = effect_if_any(rows, pairs, hash, time_to_target);
    v.steps_to_target = effect_if_any(rows, pairs, hash, steps_to_target);
    v.time_per_step_to_target = effect_if_any(rows, pairs, hash, time_per_step_to_target);

    const PairedValues finals = paired_values(pairs, metric);
    const std::vector<double> losses = finals.differences();
    v.loss.paired_t = paired_below(finals.reference, finals.candidate);
    v.loss.welch_t = welch(finals.reference, finals.candidate);
    v.loss.noise = noise_of(rows, hash, metric);
    v.loss.mean = sample_of(losses).mean;
    for (const double x : losses) v.loss.largest = std::max(v.loss.largest, std::abs(x));
    if (!losses.empty() && v.loss.noise.df > 0.0) {
      const double error = v.loss.noise.sd * std::sqrt(2.0 / static_cast<double>(losses.size()));
      v.loss.result = std::abs(v.loss.mean) <= 3.0 * error ? LossCheck::Result::equal
                                                           : LossCheck::Result::differs;
    }
    verdicts.push_back(std::move(v));
  }
  std::vector<double> faster, slower;
  for (const ArmVerdict& v : verdicts) {
    faster.push_back(v.step_time.p_faster);
    slower.push_back(v.step_time.p_slower);
  }
  faster = holm(faster);
  slower = holm(slower);
  for (size_t i = 0; i < verdicts.size(); ++i) {
    ArmVerdict& v = verdicts[i];
    v.evidence = evidence_of(v.step_time, faster[i], slower[i]);
    v.answer = answer_of(v.evidence);
    // A rewrite that changes the loss is not judged by its speed.
    if (v.answer == Answer::faster &&
        (v.loss.result != LossCheck::Result::equal || v.unstable_pairs > 0))
      v.answer = Answer::inconclusive;
    if (v.answer == Answer::inconclusive && v.step_time.noise.df > 0.0 && v.step_time.mean != 0.0)
      v.seeds_needed = seeds_needed(v.step_time.noise.sd, v.step_time.mean);
    v.text = words(v, lock, experiment);
  }
  return verdicts;
}

namespace {

template <typename Tested>
void add_tests(OrderedJson& json, const Tested& tested) {
  const TTest &paired = tested.paired_t, &apart = tested.welch_t;
  if (paired.df > 0.0 && std::isfinite(paired.p))
    json["paired_t"] = {{"t", paired.t}, {"df", paired.df}, {"p_lower", paired.p}};
  if (apart.df > 0.0 && std::isfinite(apart.p))
    json["welch"] = {{"t", apart.t}, {"df", apart.df}, {"p_two_sided", apart.p}};
}

OrderedJson effect_json(const Effect& e) {
  OrderedJson json;
  json["pairs"] = e.pairs;
  json["percent"] = percent(e.mean);
  if (std::isfinite(e.low)) {
    json["low_percent"] = percent(e.low);
    json["high_percent"] = percent(e.high);
    json["p_faster"] = e.p_faster;
    json["p_slower"] = e.p_slower;
  }
  json["noise_sd_percent"] = percent(e.noise.sd);
  json["noise_df"] = e.noise.df;
  add_tests(json, e);
  json["sign_probability"] = sign_probability(e.pairs);
  return json;
}

}  // namespace

OrderedJson to_json(const ArmVerdict& v) {
  OrderedJson json;
  json["arm"] = v.arm;
  json["answer"] = name_of(v.answer);
  json["evidence"] = name_of(v.evidence);
  json["time_per_step"] = effect_json(v.step_time);
  if (v.time_to_target) json["time_to_target"] = effect_json(*v.time_to_target);
  if (v.steps_to_target) json["steps_to_target"] = effect_json(*v.steps_to_target);
  json["loss"] = {{"result", v.loss.result == LossCheck::Result::equal     ? "equal"
                             : v.loss.result == LossCheck::Result::differs ? "differs"
                                                                           : "unknown"},
                  {"mean", v.loss.mean},
                  {"largest", v.loss.largest},
                  {"noise_sd", v.loss.noise.sd},
                  {"noise_df", v.loss.noise.df}};
  add_tests(json["loss"], v.loss);
  if (v.broken_pairs > 0) json["broken_pairs"] = v.broken_pairs;
  if (v.unstable_pairs > 0) json["unstable_pairs"] = v.unstable_pairs;
  if (v.seeds_needed > 0) json["seeds_needed"] = v.seeds_needed;
  json["text"] = v.text;
  return json;
}

}  // namespace tightloop
