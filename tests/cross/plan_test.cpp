#include <cmath>

#include <gtest/gtest.h>

#include "tightloop/core/allocation_testing.h"
#include "tightloop/engine/executable.h"
#include "tightloop/io/host_info.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/program/differentiate.h"
#include "tightloop/train/timing_state.h"

namespace tightloop {
namespace {

std::vector<ParameterGroup> groups_of(const NanochatConfig& model) {
  std::vector<NamedShape> shapes;
  for (const NanochatParameter& p : nanochat_parameters(model)) shapes.push_back({p.name, p.shape});
  return nanochat_groups(model.recipe, shapes, model.n_embd, default_rates(model.recipe), 1.0, 0.1);
}

TrainPrograms build(const NanochatConfig& model,
                    int64_t batch,
                    const std::vector<std::string>& rewrites,
                    int64_t ce_bytes) {
  return build_train_programs({.model = model,
                               .batch = batch,
                               .rewrites = rewrites,
                               .rewrite_options = {.ce_chunk_bytes = ce_bytes}},
                              groups_of(model));
}

const std::vector<std::string> kAll{"fused-qk-norm", "fused-relu2", "fused-rmsnorm", "chunked-ce"};

NanochatConfig small_model(int64_t vocab) {
  return nanochat_from_depth(Recipe::nanochat_2026_07, 4, 32, 32, 128, vocab, "SL");
}

TEST(TrainPlan, StepAllocatesNothingAndMemoryIsAsPlanned) {
  const NanochatConfig model = small_model(4096);
  TrainPrograms programs = build(model, 8, kAll, 1 << 20);
  int64_t planned = 0;
  for (const MemoryLine& line : memory_table(*programs.slots, Device::cpu, programs.plans()))
    planned += line.bytes;

  const int64_t before = memory_block_bytes(), resident_before = resident_bytes();
  SlotStore slots(programs.slots, Device::cpu);
  const Workspace workspace(programs.plans());
  Executable first(programs.first_micro_step.program, programs.first_micro_step.plan, slots,
                   workspace);
  Executable next(programs.next_micro_step.program, programs.next_micro_step.plan, slots,
                  workspace);
  Executable optimizer(programs.optimizer.program, programs.optimizer.plan, slots, workspace);
  const int64_t allocated = memory_block_bytes() - before;
  EXPECT_NEAR(static_cast<double>(allocated), static_cast<double>(planned),
              0.02 * static_cast<double>(planned));

  fill_for_timing(programs, model, groups_of(model), 1024, 1, slots);
  first.run(), next.run(), optimizer.run();  // warm: threads, first touch

  const int64_t allocations = allocations_made;
  first.run(), next.run(), optimizer.run();
  EXPECT_EQ(allocations_made - allocations, 0);
  // From outside: what the process became larger by, against the plan of what it used. Huge pages
  // round each block up, so a few MiB are left out: that is the named list here. Sanitizers keep
  // memory of their own.
  const double resident = static_cast<double>(resident_bytes() - resident_before);
  EXPECT_TRUE(!kCountsAllocations || resident < 1.02 * static_cast<double>(planned) + 16.0 * 0x1p20)
      << resident << " of " << planned;
  EXPECT_TRUE(std::isfinite(get_element(slots.view(kLossSlot), 0)));
}

/// Loss first, then every gradient of one micro-step on random tokens and parameters.
std::vector<std::vector<double>> gradients(const NanochatConfig& model,
                                           Device device,
                                           const std::vector<std::string>& rewrites) {
  const TrainPrograms programs = build_train_programs({.model = model,
                                                       .batch = 2,
                                                       .rewrites = rewrites,
                                                       .rewrite_options = {.ce_chunk_bytes = 32768},
                                                       .device = device},
                                                      groups_of(model));
  const PlannedProgram& micro = programs.first_micro_step;
  SlotStore slots(programs.slots, device);
  const Workspace workspace({&micro.plan});
  Executable run(micro.program, micro.plan, slots, workspace);
  fill_for_timing(programs, model, groups_of(model), 100, 1, slots);
  run.run();
  std::vector<std::vector<double>> all{{get_element(slots.view(kLossSlot), 0)}};
  for (const NanochatParameter& p : programs.parameters) {
    const TensorView grad = slots.view(grad_name(p.name));
    std::vector<double>& values = all.emplace_back(static_cast<size_t>(grad.elems()));
    for (int64_t i = 0; i < grad.elems(); ++i)
      values[static_cast<size_t>(i)] = get_element(grad, i);
  }
  return all;
}

// Wider than one block of the matrix products, whose sums then wait in their output: a result must
// not have taken over the buffer of an input that is still read.
TEST(TrainPlan, InPlaceResultsOfAWideModelAgreeWithRef) {
  const NanochatConfig model =
      nanochat_from_depth(Recipe::nanochat_2026_07, 3, 100, 64, 40, 290, "SL");
  ASSERT_GT(model.n_embd, 256);
  const auto truth = gradients(model, Device::ref, {});
  for (const std::vector<std::string>& rewrites : {std::vector<std::string>{}, kAll}) {
    const auto got = gradients(model, Device::cpu, rewrites);
    for (size_t p = 0; p < truth.size(); ++p) {
      double difference = 0.0, norm = 0.0;
      for (size_t i = 0; i < truth[p].size(); ++i) {
        difference += (got[p][i] - truth[p][i]) * (got[p][i] - truth[p][i]);
        norm += truth[p][i] * truth[p][i];
      }
      // float32 sums of a few thousand products through two layers.
      EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm)) << "tensor " << p;
    }
  }
}

TEST(TrainPlan, ChunkedCeKeepsLogitsWithinItsBudget) {
  const NanochatConfig model = small_model(8192);
  const int64_t rows = 8 * 128, logits = rows * model.padded_vocab() * 4, budget = 4 << 20;
  std::vector<std::string> without = kAll;
  without.pop_back();
  const TrainPrograms plain = build(model, 8, without, budget),
                      chunked = build(model, 8, kAll, budget);
  const Plan& a = plain.first_micro_step.plan;
  const Plan& b = chunked.first_micro_step.plan;
  EXPECT_GE(a.peak_live_bytes(), 2 * logits);
  EXPECT_LT(b.peak_live_bytes(), a.peak_live_bytes() - logits);
  bool found = false;
  for (const Op& op : chunked.first_micro_step.program.ops()) {
    if (op.def->name != "linear_cross_entropy_grad") continue;
    found = true;
    EXPECT_LE(op.attrs.integer("chunk_rows") * model.padded_vocab() * 4, budget);
    EXPECT_LT(op.attrs.integer("chunk_rows"), rows);
  }
  EXPECT_TRUE(found);
  // No value of the rewritten Program is as large as the logits.
  for (const Plan::Buffer& buffer : b.buffers) EXPECT_LT(buffer.bytes, logits);
}

TEST(TrainPlan, FusedRmsnormSavesAThirdOfItsBytes) {
  const NanochatConfig model =
      nanochat_from_depth(Recipe::nanochat_2026_07, 12, 64, 128, 512, 4096, "L");
  const TrainPrograms programs = build(model, 1, {"fused-rmsnorm"}, 1 << 20);
  const RewriteReport& report = programs.first_micro_step.reports.at(0);
  EXPECT_GE(report.applied.size(), 46u);  // two norms a layer, forward and backward
  EXPECT_LE(static_cast<double>(report.after().bytes()),
            0.70 * static_cast<double>(report.before().bytes()));
}

TEST(TrainPlan, BuffersAliveTogetherDoNotOverlap) {
  const TrainPrograms programs = build(small_model(512), 2, kAll, 1 << 20);
  for (const Plan* plan : programs.plans()) {
    for (size_t i = 0; i < plan->buffers.size(); ++i) {
      for (size_t j = i + 1; j < plan->buffers.size(); ++j) {
        const Plan::Buffer &a = plan->buffers[i], &b = plan->buffers[j];
        const bool together = a.first <= b.last && b.first <= a.last;
        const bool overlap = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
        EXPECT_FALSE(together && overlap) << i << " " << j;
      }
    }
  }
}

}  // namespace
}  // namespace tightloop
