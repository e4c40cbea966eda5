#include "tightloop/optim/transfer.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "tightloop/core/error.h"
#include "tightloop/optim/schedule.h"

namespace tightloop {
namespace {

constexpr double kBatchExponent{0.383};
constexpr double kMaxMicroBatchShift{0.02};
// Beyond this a double no longer counts single tokens, and steps * batch could overflow.
constexpr double kMostTokens{9007199254740992.0};  // 2^53

void expect_positive(std::string_view what, double value) {
  if (!(value > 0.0) || !std::isfinite(value))
    fail(ErrorKind::usage, "{} is {}, expected a positive number", what, value);
}

/// The multiple of `grain` nearest to x, at least one grain.
int64_t nearest_multiple(double x, int64_t grain) {
  const double count = round_half_even(x / static_cast<double>(grain));
  return std::max<int64_t>(1, static_cast<int64_t>(count)) * grain;
}

int64_t rounded_batch(double batch, int64_t grain, int64_t micro_batch) {
  const int64_t whole = nearest_multiple(batch, micro_batch);
  if (std::abs(static_cast<double>(whole) - batch) <= kMaxMicroBatchShift * batch) return whole;
  return nearest_multiple(batch, grain);
}

void check(const TransferRequest& r) {
  expect_positive("number of scaling parameters", static_cast<double>(r.scaling_params));
  expect_positive("number of scaling parameters of the reference",
                  static_cast<double>(r.reference_scaling_params));
  expect_positive("sequence length", static_cast<double>(r.sequence_len));
  expect_positive("device batch size", static_cast<double>(r.device_batch_size));
  expect_positive("number of ranks", static_cast<double>(r.ranks));
  expect_positive("matrix learning rate", r.matrix_lr);
  expect_positive("batch multiplier", r.batch_mult);
  expect_positive("learning rate multiplier", r.lr_mult);
  if (!(r.weight_decay >= 0.0) || !std::isfinite(r.weight_decay))
    fail(ErrorKind::usage, "weight decay is {}, expected 0 or more", r.weight_decay);
  if (!(r.wd_mult >= 0.0) || !std::isfinite(r.wd_mult))
    fail(ErrorKind::usage, "weight decay multiplier is {}, expected 0 or more", r.wd_mult);
  if (r.num_iterations)
    expect_positive("number of iterations", static_cast<double>(*r.num_iterations));
  if (r.target_flops) expect_positive("target FLOPs", *r.target_flops);
  if (r.target_flops) expect_positive("FLOPs per token", r.flops_per_token);
  if (r.target_param_data_ratio)
    expect_positive("target param-data ratio", *r.target_param_data_ratio);
  if (r.total_batch_size)
    expect_positive("total batch size", static_cast<double>(*r.total_batch_size));
  if (!r.num_iterations && !r.target_flops && !r.target_param_data_ratio)
    throw Error(ErrorKind::usage, "the length of the run is not given")
        .with_hint("give `--target-param-data-ratio`, `--target-flops` or `--num-iterations`");
}

}  // namespace

double default_param_data_ratio(Recipe recipe) {
  return recipe == Recipe::nanochat_2026_02 ? 10.5 : 12.0;
}

Transfer transfer(const TransferRequest& r) {
  check(r);
  const double data_ratio = r.target_param_data_ratio.value_or(1.0);
  const double tokens = std::trunc(data_ratio * static_cast<double>(r.scaling_params));
  const double reference_tokens = data_ratio * static_cast<double>(r.reference_scaling_params);
  expect_positive("number of tokens of the run", tokens);
  const auto reference_batch = static_cast<double>(kReferenceBatch);

  Transfer t;
  t.predicted_batch = reference_batch * std::pow(tokens / reference_tokens, kBatchExponent);
  double batch = r.total_batch_size ? static_cast<double>(*r.total_batch_size)
                                    : std::exp2(round_half_even(std::log2(t.predicted_batch)));
  const int64_t grain = r.sequence_len * r.ranks;
  const int64_t micro_batch = grain * r.device_batch_size;
  if (r.total_batch_size && *r.total_batch_size % grain != 0) {
    const int64_t below = *r.total_batch_size / grain * grain;
    const auto valid =
        below == 0 ? fmt::format("{}", grain) : fmt::format("{} and {}", below, below + grain);
    throw Error(ErrorKind::usage,
                fmt::format("total batch size is {} tokens, not a multiple of sequence length {} "
                            "x {} ranks",
                            *r.total_batch_size, r.sequence_len, r.ranks))
        .with_hint(fmt::format("the nearest valid: {}", valid));
  }
  batch *= r.batch_mult;
  if (!(batch <= kMostTokens))
    fail(ErrorKind::usage, "the batch would be {} tokens, more than 2^53", batch);
  t.batch = r.batch_mult == 1.0 && std::fmod(batch, static_cast<double>(grain)) == 0.0
                ? static_cast<int64_t>(batch)
                : rounded_batch(batch, grain, micro_batch);

  const auto exact_batch = static_cast<double>(t.batch);
  const double steps = r.num_iterations ? static_cast<double>(*r.num_iterations)
                       : r.target_flops
                           ? round_half_even(*r.target_flops / (r.flops_per_token * exact_batch))
                           : std::floor(tokens / exact_batch);
  if (steps < 1.0)
    throw Error(ErrorKind::usage,
                fmt::format("the horizon is shorter than one step of {} tokens", t.batch))
        .with_hint("a smaller `--total-batch-size` or a longer horizon");
  if (!(steps * exact_batch <= kMostTokens))
    fail(ErrorKind::usage, "the run would be {} tokens, more than 2^53", steps * exact_batch);
  t.steps = static_cast<int64_t>(steps);

  // Nominal values for the new batch and horizon first, then the user's multipliers.
  const double batch_factor = std::sqrt(exact_batch / reference_batch);
  t.lr_factor = batch_factor * r.lr_mult;
  t.weight_decay = r.weight_decay * batch_factor * (reference_tokens / tokens) * r.wd_mult;
  t.tau = 1.0 / (r.matrix_lr * t.lr_factor * t.weight_decay * steps);
  return t;
}

}  // namespace tightloop
