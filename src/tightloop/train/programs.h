#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tightloop/engine/executable.h"
#include "tightloop/engine/rewrite/rewrite.h"
#include "tightloop/model/nanochat.h"
#include "tightloop/optim/groups.h"

namespace tightloop {

/// What the Programs of a run are built from.
struct TrainProgramsSpec {
  NanochatConfig model;
  int64_t batch = 1;   // sequences of a micro-step
  int64_t tokens = 0;  // of a sequence; 0: model.sequence_len
  std::vector<std::string> rewrites;
  RewriteOptions rewrite_options;
  Device device = Device::cpu;
  DType dtype = DType::f32;  // of products and activations; parameters are f32

  int64_t sequence() const { return tokens > 0 ? tokens : model.sequence_len; }
};

/// Names of the slots that a trainer fills and reads.
inline constexpr std::string_view kTokensSlot = "tokens";         // i32 (B, T)
inline constexpr std::string_view kTargetsSlot = "targets";       // i32 (B, T)
inline constexpr std::string_view kLossScaleSlot = "loss_scale";  // f32: 1 / targets of the step
inline constexpr std::string_view kLossSlot = "loss";             // f32: sum of losses x loss_scale
inline constexpr std::string_view kEvalLossSlot = "eval_loss";    // f32 (B, T)

/// A Program with what happened to it and where its values live.
struct PlannedProgram {
  Program program;
  std::vector<RewriteReport> reports;
  Plan plan;
};

/// All Programs of a run over one slot table. A micro-step is forward and backward of one
/// micro-batch; the first of a step overwrites the gradients, later ones add to them. Evaluation
/// runs without the loss rewrites, so that all arms of an experiment have one judge.
struct TrainPrograms {
  std::shared_ptr<SlotTable> slots;
  std::vector<NanochatParameter> parameters;
  PlannedProgram first_micro_step;
  PlannedProgram next_micro_step;
  PlannedProgram evaluation;
  PlannedProgram optimizer;

  std::vector<const Plan*> plans() const {
    return {&first_micro_step.plan, &next_micro_step.plan, &evaluation.plan, &optimizer.plan};
  }
};

/// Builds, differentiates, rewrites and plans. Touches no memory of tensors.
TrainPrograms build_train_programs(const TrainProgramsSpec& spec,
                                   const std::vector<ParameterGroup>& groups);

/// The forward Program alone, with its logits stored in an output slot named "logits"
/// (B, T, padded vocabulary).
PlannedProgram build_forward_program(const TrainProgramsSpec& spec,
                                     std::shared_ptr<SlotTable> slots);

}  // namespace tightloop
