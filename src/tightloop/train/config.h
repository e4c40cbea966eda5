#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "tightloop/core/dtype.h"
#include "tightloop/core/exec.h"
#include "tightloop/core/options.h"
#include "tightloop/core/recipe.h"
#include "tightloop/engine/rewrite/rewrite.h"
#include "tightloop/model/nanochat.h"
#include "tightloop/optim/groups.h"
#include "tightloop/optim/schedule.h"

namespace tightloop {

/// Evaluations besides --eval-every: every `every` steps from `first` to `last`, both included.
/// Written "FIRST:LAST:EVERY".
struct EvalWindow {
  int64_t first = 0;
  int64_t last = 0;
  int64_t every = 1;

  bool due(int64_t step) const {
    return step >= first && step <= last && (step - first) % every == 0;
  }
};
/// Error{usage}.
EvalWindow parse_eval_window(const std::string& text);
std::string to_string(const EvalWindow& window);

/// Everything a training run is told. What is not set is derived from --depth and the recipe.
struct TrainConfig {
  Recipe recipe = Recipe::nanochat_2026_07;

  // model
  int64_t depth = 20;
  int64_t aspect_ratio = 64;
  int64_t head_dim = 128;
  int64_t max_seq_len = 2048;
  std::string window_pattern = "SSSL";

  // data
  std::string data;                      // folder with shards and tokenizer.json; empty: built in
  std::optional<std::string> tokenizer;  // another tokenizer than the one beside the shards
  std::optional<int64_t> data_seed;

  // horizon and batch
  std::optional<int64_t> num_iterations;
  std::optional<double> target_flops;
  std::optional<double> target_param_data_ratio;
  int64_t device_batch_size = 32;
  std::optional<int64_t> total_batch_size;

  // optimizer
  std::optional<int64_t> warmup_steps;
  std::optional<double> warmdown_ratio;
  WarmdownShape warmdown_shape = WarmdownShape::linear;
  std::optional<double> final_lr_frac;
  std::optional<double> matrix_lr, embedding_lr, unembedding_lr, scalar_lr, weight_decay;
  double batch_mult = 1.0, lr_mult = 1.0, wd_mult = 1.0;
  int64_t seed = 42;

  // evaluation, samples, checkpoints
  int64_t eval_every = 250;
  std::optional<EvalWindow> eval_window;
  std::optional<int64_t> eval_tokens;
  int64_t sample_every = 2000;
  int64_t save_every = -1;
  bool save_initial = false;
  int64_t keep_checkpoints = 2;
  std::string target_metric = "val_bpb";
  std::optional<double> target_threshold;

  // run
  std::string run = "run";
  std::string run_dir = "runs";
  std::optional<std::string> resume;
  bool allow_different_machine = false;
  Device device = Device::cpu;
  DType dtype = DType::f32;
  bool generic_arch = false;  // cuda::set_generic_arch()
  bool debug_sync = false;    // cuda::set_debug_sync()
  std::optional<int64_t> threads;

  // rewrites
  std::map<std::string, bool> rewrites;  // by name
  std::optional<int64_t> ce_chunk_bytes;

  TrainConfig();
  std::vector<std::string> enabled_rewrites() const;
  /// The budget given, or the device's: 64 MiB on the CPU, whose caches it should not leave far
  /// behind, and 1 GiB on cuda, where products of few rows starve the tensor cores.
  RewriteOptions rewrite_options() const;
};

/// Declares every option of `train` on the fields of `config`, which must outlive `options`.
void declare_train_options(Options& options, TrainConfig& config);

/// A named set of values for a documented run ("quick"). Error{usage} for an unknown name.
std::vector<std::pair<std::string, std::string>> train_preset(std::string_view name);
std::vector<std::string> train_preset_names();

}  // namespace tightloop
