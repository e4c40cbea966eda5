#include "tightloop/train/programs.h"

#include <algorithm>

#include "tightloop/ops/basic/basic.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

void declare_slots(SlotTable& slots, const TrainProgramsSpec& spec) {
  declare_nanochat(slots, spec.model, DType::f32, spec.sequence());
  const Shape batch{spec.batch, spec.sequence()};
  slots.add({std::string(kTokensSlot), {DType::i32, batch}, SlotRole::input});
  slots.add({std::string(kTargetsSlot), {DType::i32, batch}, SlotRole::input});
  slots.add({std::string(kLossScaleSlot), {DType::f32, {}}, SlotRole::scalar});
  slots.add({std::string(kLossSlot), {DType::f32, {}}, SlotRole::output});
  slots.add({std::string(kEvalLossSlot), {DType::f32, batch}, SlotRole::output});
}

PlannedProgram finish(Program program,
                      const TrainProgramsSpec& spec,
                      std::vector<std::string> rewrites) {
  std::vector<RewriteReport> reports =
      apply_rewrites(program, op_table(), rewrites, spec.rewrite_options);
  Plan plan = make_plan(program, spec.device);
  return {std::move(program), std::move(reports), std::move(plan)};
}

PlannedProgram micro_step(const TrainProgramsSpec& spec,
                          std::shared_ptr<SlotTable> slots,
                          bool accumulate) {
  Program program(accumulate ? "micro-step, later" : "micro-step, first", std::move(slots));
  Builder b(program, op_table());
  const Value losses = nanochat_loss(b, spec.model, b.slot(kTokensSlot), b.slot(kTargetsSlot),
                                     spec.dtype, LogitsDtype::as_activations);
  b.set_scope("loss");
  const Value loss = mul(b, sum(b, losses), b.slot(kLossScaleSlot));
  store(b, loss, b.slot(kLossSlot), accumulate);
  differentiate(program, op_table(), loss, {.accumulate = accumulate});
  return finish(std::move(program), spec, spec.rewrites);
}

}  // namespace

TrainPrograms build_train_programs(const TrainProgramsSpec& spec,
                                   const std::vector<ParameterGroup>& groups) {
  if (spec.dtype != DType::f32 && spec.device == Device::cpu)
    throw Error(ErrorKind::unsupported,
                fmt::format("--dtype {} computes on cuda only", name_of(spec.dtype)))
        .with_hint("use `--device cuda`, or leave --dtype out");
  const int64_t least = 8 * spec.model.padded_vocab() * size_of(spec.dtype);
  if (std::count(spec.rewrites.begin(), spec.rewrites.end(), "chunked-ce") > 0 &&
      spec.rewrite_options.ce_chunk_bytes < least)
    throw Error(ErrorKind::usage,
                fmt::format("--ce-chunk-bytes {}: chunked-ce takes 8 rows of {} logits at least",
                            spec.rewrite_options.ce_chunk_bytes, spec.model.padded_vocab()))
        .with_hint(fmt::format("use `--ce-chunk-bytes {}` or more, or --no-chunked-ce", least));
  auto slots = std::make_shared<SlotTable>();
  declare_slots(*slots, spec);

  Program evaluation("evaluation", slots);
  {
    Builder b(evaluation, op_table());
    const Value losses = nanochat_loss(b, spec.model, b.slot(kTokensSlot), b.slot(kTargetsSlot),
                                       spec.dtype, LogitsDtype::f32);
    store(b, losses, b.slot(kEvalLossSlot), false);
  }
  std::vector<std::string> judge = spec.rewrites;
  std::erase(judge, "chunked-ce");

  PlannedProgram first = micro_step(spec, slots, false);
  PlannedProgram next = micro_step(spec, slots, true);
  PlannedProgram eval = finish(std::move(evaluation), spec, judge);
  Program optimizer = build_optimizer(
      "optimizer", slots, op_table(), groups, spec.model.recipe,
      {.dtype = spec.dtype, .stack_elems = spec.device == Device::cuda ? kCudaStackElems : 0});
  {
    Builder b(optimizer, op_table());
    emit_grad_sum_squares(b, groups);
  }
  PlannedProgram step = finish(std::move(optimizer), spec, {});
  return {slots,
          nanochat_parameters(spec.model),
          std::move(first),
          std::move(next),
          std::move(eval),
          std::move(step)};
}

PlannedProgram build_forward_program(const TrainProgramsSpec& spec,
                                     std::shared_ptr<SlotTable> slots) {
  Program program("forward", slots);
  Builder b(program, op_table());
  const Value logits = nanochat_logits(b, spec.model, b.slot(kTokensSlot), spec.dtype);
  slots->add_or_find({"logits", program.type(logits), SlotRole::output});
  store(b, logits, b.slot("logits"), false);
  return finish(std::move(program), spec, spec.rewrites);
}

}  // namespace tightloop
