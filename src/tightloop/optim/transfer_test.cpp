#include "tightloop/optim/transfer.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/optim/groups.h"

namespace tightloop {
namespace {

constexpr Recipe kNewer = Recipe::nanochat_2026_07, kOlder = Recipe::nanochat_2026_02;

/// Transformer matrices, gates and head of a model of default shape (nanochat.md section 1).
int64_t scaling_params(Recipe recipe, int64_t depth) {
  const int64_t width = 64 * depth % 128 == 0 ? 64 * depth : 64 * depth + 64;
  const int64_t heads = width / 128, gate = recipe == kOlder ? 32 : 12;
  return 12 * depth * width * width + (depth + 1) / 2 * heads * gate + 32768 * width;
}

TransferRequest request(Recipe recipe, int64_t depth) {
  const BaseRates rates = default_rates(recipe);
  return {.scaling_params = scaling_params(recipe, depth),
          .reference_scaling_params = scaling_params(recipe, 12),
          .flops_per_token = 0.0,
          .num_iterations = {},
          .target_flops = {},
          .target_param_data_ratio = default_param_data_ratio(recipe),
          .total_batch_size = {},
          .sequence_len = 2048,
          .device_batch_size = 32,
          .ranks = 1,
          .matrix_lr = rates.matrix_lr,
          .weight_decay = rates.weight_decay,
          .batch_mult = 1.0,
          .lr_mult = 1.0,
          .wd_mult = 1.0};
}

TEST(Transfer, ScalingParametersOfTheReference) {
  EXPECT_EQ(scaling_params(kOlder, 12), 110101632);
  EXPECT_EQ(scaling_params(kNewer, 12), 110100912);
}

TEST(Transfer, TheTableOfNanochatsRuns) {
  struct Row {
    int64_t depth, log2_batch, steps_older;
    double lambda_older;
    int64_t steps_newer;
    double lambda_newer;
  };
  for (const Row& row : {Row{4, 18, 462, 1.3499, 528, 1.8899},
                         {8, 18, 1680, 0.37123, 1920, 0.51972},
                         {10, 19, 1404, 0.31402, 1605, 0.43963},
                         {12, 19, 2205, 0.20000, 2520, 0.28000},
                         {16, 19, 4704, 0.09375, 5376, 0.13125},
                         {20, 20, 4357, 0.07156, 4980, 0.10019},
                         {24, 20, 7308, 0.04267, 8352, 0.05974},
                         {26, 20, 9196, 0.03391, 10510, 0.04747},
                         {32, 21, 8400, 0.02625, 9600, 0.03675}}) {
    SCOPED_TRACE(row.depth);
    const Transfer older = transfer(request(kOlder, row.depth));
    const Transfer newer = transfer(request(kNewer, row.depth));
    EXPECT_EQ(older.batch, int64_t{1} << row.log2_batch);
    EXPECT_EQ(newer.batch, older.batch);
    EXPECT_EQ(older.steps, row.steps_older);
    EXPECT_EQ(newer.steps, row.steps_newer);
    const double factor = std::exp2((static_cast<double>(row.log2_batch) - 19) / 2);
    EXPECT_NEAR(older.lr_factor, factor, 1e-12);
    const double half_digit = row.lambda_older > 1 ? 5.1e-5 : 5.1e-6;
    EXPECT_NEAR(older.weight_decay, row.lambda_older, half_digit);
    EXPECT_NEAR(newer.weight_decay, row.lambda_newer, half_digit);
  }
}

TEST(Transfer, PublishedRuns) {
  TransferRequest run1 = request(kOlder, 24);
  run1.target_param_data_ratio = 12;
  run1.total_batch_size = 1 << 19;
  EXPECT_EQ(transfer(run1).steps, 16704);

  TransferRequest run3 = request(kOlder, 26);
  run3.target_param_data_ratio = 8.25;
  run3.total_batch_size = 1 << 20;
  EXPECT_EQ(transfer(run3).steps, 7226);

  TransferRequest run2 = request(kOlder, 26);
  run2.target_param_data_ratio = 8.5;
  run2.total_batch_size = 1 << 19;
  EXPECT_EQ(transfer(run2).steps, 14889);
}

TEST(Transfer, HorizonsInOrderOfPrecedence) {
  TransferRequest r = request(kOlder, 12);
  r.flops_per_token = 802167552;
  EXPECT_EQ(transfer(r).steps, 2205);
  r.target_flops = 802167552.0 * 524288 * 100.5;
  EXPECT_EQ(transfer(r).steps, 100);  // halves to even
  r.num_iterations = 7;
  EXPECT_EQ(transfer(r).steps, 7);
  // The laws go by the nominal ratio all the same.
  EXPECT_NEAR(transfer(r).weight_decay, 0.2, 1e-12);
  // Without a ratio they go by the sizes alone.
  r.target_param_data_ratio.reset();
  r.scaling_params *= 2;
  EXPECT_NEAR(transfer(r).weight_decay, 0.1, 1e-12);
}

TEST(Transfer, MultipliersComeAfterTheLaws) {
  // lab.md 4.1: a batch of its own changes rates and decay, before the other two.
  struct Row {
    double mult;
    int64_t batch, steps;
    double lr, lambda;
  };
  for (const Row& row : {Row{0.7, 368640, 3136, 0.016771, 0.167705},
                         {1.0, 524288, 2205, 0.020000, 0.200000},
                         {1.4, 737280, 1568, 0.023717, 0.237171}}) {
    SCOPED_TRACE(row.mult);
    TransferRequest r = request(kOlder, 12);
    r.device_batch_size = 4;  // micro-batches of 8,192 tokens
    r.batch_mult = row.mult;
    const Transfer t = transfer(r);
    EXPECT_EQ(t.batch, row.batch);
    EXPECT_EQ(t.steps, row.steps);
    EXPECT_NEAR(t.lr_factor * 0.02, row.lr, 5e-7);
    EXPECT_NEAR(t.weight_decay, row.lambda, 5e-7);
    EXPECT_NEAR(t.tau, 0.1134, 5e-5);

    r.lr_mult = 1.1;
    r.wd_mult = 1.4;
    const Transfer tuned = transfer(r);
    EXPECT_EQ(tuned.batch, t.batch);
    EXPECT_NEAR(tuned.lr_factor, 1.1 * t.lr_factor, 1e-12);
    EXPECT_NEAR(tuned.weight_decay, 1.4 * t.weight_decay, 1e-12);
    EXPECT_NEAR(tuned.tau / t.tau, 0.649, 5e-4);
  }
}

TEST(Transfer, RoundsToMicroBatchesOnlyWhereThatIsNear) {
  TransferRequest r = request(kOlder, 12);
  r.sequence_len = 512;
  r.device_batch_size = 16;
  r.total_batch_size = 16384;
  r.num_iterations = 1500;
  EXPECT_EQ(transfer(r).batch, 16384);
  EXPECT_NEAR(transfer(r).lr_factor, 0.17678, 5e-6);
  EXPECT_NEAR(transfer(r).weight_decay, 0.035355, 5e-7);
  EXPECT_NEAR(transfer(r).tau, 5.33, 0.01);
  r.batch_mult = 0.7;
  EXPECT_EQ(transfer(r).batch, 11264);
  r.batch_mult = 1.4;
  EXPECT_EQ(transfer(r).batch, 23040);
  r.batch_mult = 1.5;
  EXPECT_EQ(transfer(r).batch, 24576);
  // A predicted batch that is no multiple of the sequence length becomes one.
  r.total_batch_size.reset();
  r.batch_mult = 1.0;
  r.sequence_len = 1000;
  EXPECT_EQ(transfer(r).batch, 528000);
}

TEST(Transfer, RefusesWithTheNextStep) {
  const auto error = [](auto&& change) -> std::string {
    TransferRequest r = request(kOlder, 12);
    change(r);
    try {
      transfer(r);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
      return e.message() + " | " + e.hint();
    }
    return "no error";
  };
  EXPECT_EQ(error([](TransferRequest& r) { r.total_batch_size = 5000; }),
            "total batch size is 5000 tokens, not a multiple of sequence length 2048 x 1 ranks | "
            "the nearest valid: 4096 and 6144");
  EXPECT_EQ(error([](TransferRequest& r) { r.total_batch_size = 100; }),
            "total batch size is 100 tokens, not a multiple of sequence length 2048 x 1 ranks | "
            "the nearest valid: 2048");
  EXPECT_EQ(error([](TransferRequest& r) { r.target_param_data_ratio.reset(); }),
            "the length of the run is not given | give `--target-param-data-ratio`, "
            "`--target-flops` or `--num-iterations`");
  EXPECT_EQ(error([](TransferRequest& r) { r.target_param_data_ratio = 1e-4; }),
            "the horizon is shorter than one step of 524288 tokens | a smaller "
            "`--total-batch-size` or a longer horizon");
  EXPECT_EQ(error([](TransferRequest& r) { r.lr_mult = 0; }),
            "learning rate multiplier is 0, expected a positive number | ");
  EXPECT_EQ(error([](TransferRequest& r) { r.batch_mult = std::nan(""); }),
            "batch multiplier is nan, expected a positive number | ");
  EXPECT_NE(error([](TransferRequest& r) { r.batch_mult = 1e30; }), "no error");
  EXPECT_NE(error([](TransferRequest& r) { r.num_iterations = int64_t{1} << 60; }), "no error");
  EXPECT_NE(error([](TransferRequest& r) { r.target_flops = 1e20; }), "no error");  // per token: 0
}

TEST(Transfer, NoDecayIsRememberedForEver) {
  TransferRequest r = request(kOlder, 12);
  r.wd_mult = 0.0;
  EXPECT_EQ(transfer(r).weight_decay, 0.0);
  EXPECT_TRUE(std::isinf(transfer(r).tau));
}

}  // namespace
}  // namespace tightloop
