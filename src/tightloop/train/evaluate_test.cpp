#include "tightloop/train/evaluate.h"

#include <cmath>
#include <filesystem>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/io/token_shard.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/embedding/embedding.h"
#include "tightloop/train/programs.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

// A "model" whose loss for target v is loss_of[v], on a shard whose rows are written out below.
TEST(Evaluate, BitsPerByteLeavesTargetsWithoutBytesOutOfBothSums) {
  constexpr int32_t kBos = 0;
  const std::vector<double> loss_of{100.0, 0.5, 1.25, 3.0, 7.0};
  const std::vector<int32_t> bytes_of{0, 1, 3, 2, 0};  // BOS and token 4 are special

  const fs::path folder =
      fs::temp_directory_path() / fmt::format("tl-evaluate-{}", static_cast<int>(::getpid()));
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::string shard = (folder / "val_000000.bin").string();
  {
    // Documents of five tokens, as long as a row of T + 1: each row is one document.
    TokenShardWriter writer(shard, 1000);
    writer.append(std::vector<int32_t>{kBos, 1, 2, 3, 1, kBos, 2, 2, 4, 3,
                                       kBos, 3, 3, 3, 3, kBos, 1, 1, 4, 4});
    writer.finish();
  }

  auto slots = std::make_shared<SlotTable>();
  const Shape batch{2, 4};
  slots->add({std::string(kTokensSlot), {DType::i32, batch}, SlotRole::input});
  slots->add({std::string(kTargetsSlot), {DType::i32, batch}, SlotRole::input});
  slots->add({"losses", {DType::f32, {5, 1}}, SlotRole::parameter});
  slots->add({std::string(kEvalLossSlot), {DType::f32, {2, 4, 1}}, SlotRole::output});
  Program program("look-up", slots);
  {
    Builder b(program, op_table());
    store(b, embedding(b, b.slot(kTargetsSlot), b.slot("losses")), b.slot(kEvalLossSlot), false);
  }
  Plan plan = make_plan(program, Device::cpu);
  const SlotStore memory(slots, Device::cpu);
  for (size_t v = 0; v < loss_of.size(); ++v)
    static_cast<float*>(memory.view("losses").data)[v] = static_cast<float>(loss_of[v]);
  const Workspace workspace({&plan});
  Executable executable(std::move(program), std::move(plan), memory, workspace);

  const DocumentOptions documents{.shards = {shard}, .bos = kBos, .vocab_size = 5, .data_seed = {}};
  Batch scratch;
  const std::atomic<bool> stop{false};
  const std::optional<Evaluation> e =
      evaluate(executable, memory, documents, 2, bytes_of, scratch, stop);
  ASSERT_TRUE(e.has_value());

  // By hand. Targets: 1 2 3 1 | 2 2 4 3 | 3 3 3 3 | 1 1 4 4, in some order of rows.
  const double all = 4 * 0.5 + 3 * 1.25 + 6 * 3.0 + 3 * 7.0;
  const double with_bytes = 4 * 0.5 + 3 * 1.25 + 6 * 3.0;
  const int64_t bytes = 4 * 1 + 3 * 3 + 6 * 2;
  EXPECT_EQ(e->tokens, 16);
  EXPECT_DOUBLE_EQ(e->nats, all);
  EXPECT_DOUBLE_EQ(e->loss(), all / 16);
  EXPECT_EQ(e->bytes, bytes);
  EXPECT_DOUBLE_EQ(e->bits_per_byte(), with_bytes / (std::log(2.0) * static_cast<double>(bytes)));
  EXPECT_FALSE(e->has_floor);

  const std::atomic<bool> stopped{true};
  EXPECT_FALSE(evaluate(executable, memory, documents, 2, bytes_of, scratch, stopped).has_value());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tightloop
