#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tightloop/core/json.h"
#include "tightloop/lab/ledger.h"
#include "tightloop/lab/lock.h"
#include "tightloop/lab/statistics.h"

namespace tightloop {

/// Below this many degrees of freedom of measured repeats nothing is more than suggestive.
inline constexpr double kLeastDf = 7.0;

/// A difference between two arms in ln, candidate minus reference, from pairs of one seed.
struct Effect {
  int64_t pairs = 0;
  double mean = 0.0;             // of ln(candidate / reference)
  double low = 0.0, high = 0.0;  // 90 % interval, from the pooled repeats; infinite without any
  double p_faster = 1.0;         // one-sided
  double p_slower = 1.0;
  bool all_lower = false, all_higher = false;
  Pool noise;  // SD of one run, in ln
  // Of the same values, for the record; the verdict does not go by them.
  TTest paired_t;  // one-sided: lower; n - 1 degrees of freedom
  TTest welch_t;   // two-sided
};

/// t = mean(d) / (s sqrt(2 / n)) with s the pooled SD of repeats and its degrees of freedom.
Effect effect_of(std::span<const double> differences, const Pool& noise);

enum class Evidence { strong, moderate, suggestive, none, harmful };
enum class Answer { faster, slower, inconclusive };
std::string_view name_of(Evidence evidence);
std::string_view name_of(Answer answer);

/// The rule, on p-values adjusted for the number of candidates (Holm):
///   strong     p < 0.01, all pairs lower, at least kLeastDf degrees of freedom
///   moderate   p < 0.05, at least kLeastDf
///   harmful    p of slower < 0.05, at least kLeastDf
///   suggestive all pairs to one side, nothing of the above
///   none       otherwise
/// FASTER needs strong or moderate, SLOWER needs harmful; all else is INCONCLUSIVE. The 90 %
/// interval belongs to the one-sided 5 %: with one candidate it excludes 0 where p < 0.05. Under no
/// difference FASTER comes up in at most 5 % of experiments, whatever the number of candidates.
Evidence evidence_of(const Effect& effect, double adjusted_faster, double adjusted_slower);
Answer answer_of(Evidence evidence);

/// The smallest effect in ln that n pairs find with 80 % power, one-sided 5 %.
double detectable(const Pool& noise, int64_t pairs);

/// Final metric of the candidate minus that of the reference, pair by pair. For a rewrite, which
/// keeps the function, it must lie within 3 standard errors of repeat noise.
struct LossCheck {
  enum class Result { equal, differs, unknown };
  Result result = Result::unknown;
  double mean = 0.0;
  double largest = 0.0;  // |difference| of a pair
  Pool noise;            // SD of the metric over seeds
  TTest paired_t;        // as in Effect
  TTest welch_t;
};

struct ArmVerdict {
  std::string arm;
  Evidence evidence = Evidence::none;
  Answer answer = Answer::inconclusive;
  Effect step_time;  // median time of a step: carries the verdict of a rewrite
  std::optional<Effect> time_to_target, steps_to_target, time_per_step_to_target;
  LossCheck loss;
  int64_t broken_pairs = 0;
  /// Seeds at which the candidate diverged or became non-finite and the reference did not: it is
  /// not FASTER then, whatever the runs that are left say.
  int64_t unstable_pairs = 0;
  int64_t seeds_needed = 0;  // an arm, to settle a difference of this size; 0: not said
  std::string text;          // the evidence in words, without the arm and the answer
};

/// Judges the arms of an experiment against its first one. Rows: those of the whole ledger; repeats
/// of one configuration within one experiment make the noise. Error{usage} when rows of the
/// experiment were made under another lock.
std::vector<ArmVerdict> judge(const std::vector<LedgerRow>& rows,
                              const std::string& experiment,
                              const std::vector<std::string>& arms,
                              const TargetLock& lock);

/// As in decisions/<name>.json. A t-test that too few values or no spread leave without an answer
/// is left out.
OrderedJson to_json(const ArmVerdict& verdict);

/// "INCONCLUSIVE (suggestive)"
std::string verdict_word(const ArmVerdict& verdict);
/// All verdicts in one short sentence: "chunked-ce 1.9 % less time per step (suggestive, 2 seeds);
/// the others: no difference shown".
std::string headline(const std::vector<ArmVerdict>& verdicts, const std::string& experiment);

/// "baseline" is called the unfused reference in words.
std::string reference_name();
/// The value of the locked metric at the end of a run.
std::optional<double> final_metric(const LedgerRow& row, const TargetLock& lock);

}  // namespace tightloop
