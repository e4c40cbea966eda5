#include "tightloop/train/timing_state.h"

#include "tightloop/core/rng.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/optim/optimizer.h"

namespace tightloop {

void fill_for_timing(const TrainPrograms& programs,
                     const NanochatConfig& model,
                     const std::vector<ParameterGroup>& groups,
                     int64_t step_tokens,
                     uint64_t seed,
                     SlotStore& slots) {
  for (NanochatParameter p : programs.parameters) {
    if (p.init.kind == Init::Kind::zero) p.init = {Init::Kind::normal, 0.0, 0.02};
    init_parameter(p, seed, slots.host(p.name));
    slots.push(p.name);
  }
  init_rope_table(model, slots.host("rope_table"));
  slots.push("rope_table");
  const TensorView tokens = slots.host(kTokensSlot), targets = slots.host(kTargetsSlot);
  Rng rng(seed, 1);
  const auto vocab = static_cast<uint64_t>(model.vocab_size);
  for (int64_t i = 0; i < tokens.elems(); ++i) {
    set_element(tokens, i, static_cast<double>(rng.below(vocab)));
    set_element(targets, i, static_cast<double>(rng.below(vocab)));
  }
  set_element(slots.host(kLossScaleSlot), 0, 1.0 / static_cast<double>(step_tokens));
  for (const std::string_view name : {kTokensSlot, kTargetsSlot, kLossScaleSlot}) slots.push(name);
  const Schedule schedule(model.recipe, 1000, default_schedule(model.recipe));
  write_hypers(groups, schedule, 200, [&](size_t group, std::span<const double> v) {
    const SlotId id = slots.table().get(hyper_name(groups[group].name));
    const TensorView slot = slots.host(id);
    for (size_t i = 0; i < v.size(); ++i) set_element(slot, static_cast<int64_t>(i), v[i]);
    slots.push(id);
  });
}

}  // namespace tightloop
