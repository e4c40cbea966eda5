#pragma once

#include <cstdint>
#include <optional>

#include "tightloop/core/recipe.h"

namespace tightloop {

/// What the scaling laws are told of a run and of its reference, a model of depth 12 built with the
/// same arguments. "Scaling parameters": transformer matrices and output head.
struct TransferRequest {
  int64_t scaling_params = 0;
  int64_t reference_scaling_params = 0;
  double flops_per_token = 0.0;

  // The horizon; the first one given counts.
  std::optional<int64_t> num_iterations;
  std::optional<double> target_flops;
  std::optional<double> target_param_data_ratio;

  std::optional<int64_t> total_batch_size;  // tokens; not given: predicted
  int64_t sequence_len = 0;
  int64_t device_batch_size = 0;  // sequences
  int64_t ranks = 1;

  double matrix_lr = 0.0;     // before scaling; only for tau
  double weight_decay = 0.0;  // before scaling

  double batch_mult = 1.0;
  double lr_mult = 1.0;
  double wd_mult = 1.0;
};

/// What follows from it.
struct Transfer {
  double predicted_batch = 0.0;  // B_opt in tokens, before rounding
  int64_t batch = 0;             // tokens per optimizer step
  int64_t steps = 0;
  double lr_factor = 1.0;     // sqrt(batch / B_ref) * lr_mult, for all rates but smear's
  double weight_decay = 0.0;  // Muon's, at step 0
  /// batch / (matrix_lr * lr_factor * weight_decay * batch * steps): how long, as a share of the
  /// run, an update is remembered. Infinite without decay.
  double tau = 0.0;
};

constexpr int64_t kReferenceBatch{524288};  // B_ref, tokens

/// 12 (2026-07), 10.5 (2026-02): tokens per scaling parameter.
double default_param_data_ratio(Recipe recipe);

/// Batch, horizon, rates and decay of a run. With r the ratio (1 when not given),
/// D = trunc(r * scaling_params) and D_ref = r * reference_scaling_params:
///   batch   the one given, else B_ref (D/D_ref)^0.383 to the nearest power of two; times
///           batch_mult, then (unless nothing changed it) to a multiple of the micro-batch
///           sequence_len * device_batch_size * ranks where that moves it by at most 2 %, else to
///           one of sequence_len * ranks
///   steps   num_iterations, else round(target_flops / (flops_per_token * batch)), else
///           floor(D / batch)
///   decay   weight_decay * sqrt(batch / B_ref) * D_ref / D * wd_mult
/// The laws use the nominal D even when another horizon is given, as nanochat does.
/// Error{usage}: no horizon, a value that is not positive, a batch that is not a multiple of
/// sequence_len * ranks (names the nearest valid ones), a horizon of less than one step.
/// Sources: batch exponent arXiv:2505.13738, decay timescale arXiv:2405.13698.
Transfer transfer(const TransferRequest& request);

}  // namespace tightloop
