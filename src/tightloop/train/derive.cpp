#include "tightloop/train/derive.h"

#include <algorithm>

namespace tightloop {

Derived derive(const TrainConfig& config, int64_t vocab_size) {
  const Recipe recipe = config.recipe;
  const auto model_of = [&](int64_t depth) {
    return nanochat_from_depth(recipe, depth, config.aspect_ratio, config.head_dim,
                               config.max_seq_len, vocab_size, config.window_pattern);
  };
  Derived d;
  d.model = model_of(config.depth);
  d.sizes = nanochat_sizes(d.model);
  d.rates = default_rates(recipe);
  d.rates.matrix_lr = config.matrix_lr.value_or(d.rates.matrix_lr);
  d.rates.embedding_lr = config.embedding_lr.value_or(d.rates.embedding_lr);
  d.rates.unembedding_lr = config.unembedding_lr.value_or(d.rates.unembedding_lr);
  d.rates.scalar_lr = config.scalar_lr.value_or(d.rates.scalar_lr);
  d.rates.weight_decay = config.weight_decay.value_or(d.rates.weight_decay);

  d.param_data_ratio = config.target_param_data_ratio.value_or(default_param_data_ratio(recipe));
  d.transfer = transfer({.scaling_params = d.sizes.scaling,
                         .reference_scaling_params = nanochat_sizes(model_of(12)).scaling,
                         .flops_per_token = static_cast<double>(d.sizes.flops_per_token),
                         .num_iterations = config.num_iterations,
                         .target_flops = config.target_flops,
                         .target_param_data_ratio = d.param_data_ratio,
                         .total_batch_size = config.total_batch_size,
                         .sequence_len = config.max_seq_len,
                         .device_batch_size = config.device_batch_size,
                         .matrix_lr = d.rates.matrix_lr,
                         .weight_decay = d.rates.weight_decay,
                         .batch_mult = config.batch_mult,
                         .lr_mult = config.lr_mult,
                         .wd_mult = config.wd_mult});
  d.rows_per_step = d.transfer.batch / config.max_seq_len;
  d.device_batch_size = std::min(config.device_batch_size, d.rows_per_step);
  d.micro_steps = (d.rows_per_step + d.device_batch_size - 1) / d.device_batch_size;

  d.schedule = default_schedule(recipe);
  d.schedule.warmup_steps = config.warmup_steps.value_or(d.schedule.warmup_steps);
  d.schedule.warmdown_ratio = config.warmdown_ratio.value_or(d.schedule.warmdown_ratio);
  d.schedule.final_lr_frac = config.final_lr_frac.value_or(d.schedule.final_lr_frac);
  d.schedule.warmdown_shape = config.warmdown_shape;
  d.eval_tokens =
      config.eval_tokens.value_or((recipe == Recipe::nanochat_2026_07 ? 80 : 40) * int64_t{524288});

  std::vector<NamedShape> shapes;
  for (const NanochatParameter& p : nanochat_parameters(d.model))
    shapes.push_back({p.name, p.shape});
  d.groups = nanochat_groups(recipe, shapes, d.model.n_embd, d.rates, d.transfer.lr_factor,
                             d.transfer.weight_decay);
  return d;
}

}  // namespace tightloop
