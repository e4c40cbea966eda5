#include "tightloop/train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/io/token_shard.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/text/tokenizer.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/programs.h"

namespace tightloop {

double Evaluation::bits_per_byte() const {
  return byte_nats / (std::log(2.0) * static_cast<double>(bytes));
}

double Evaluation::excess_error() const {
  const double n = static_cast<double>(tokens), mean = (nats - floor_nats) / n;
  return std::sqrt(std::max(0.0, excess_squares / n - mean * mean) / n);
}

std::optional<Evaluation> evaluate(Executable& program,
                                   const SlotStore& slots,
                                   const DocumentOptions& documents,
                                   int64_t batches,
                                   const std::vector<int32_t>& byte_lengths,
                                   Batch& batch,
                                   const std::atomic<bool>& stop) {
  const Shape rows = slots.view(kTokensSlot).shape();
  RowPacker packer(documents, rows[1]);
  Evaluation e;
  e.has_floor = packer.has_floor();
  for (int64_t i = 0; i < batches; ++i) {
    if (stop.load(std::memory_order_relaxed)) return std::nullopt;
    fill_batch(packer, rows[0], batch);
    std::copy(batch.tokens.begin(), batch.tokens.end(), slots.host(kTokensSlot).as<int32_t>());
    std::copy(batch.targets.begin(), batch.targets.end(), slots.host(kTargetsSlot).as<int32_t>());
    slots.push(kTokensSlot);
    slots.push(kTargetsSlot);
    program.run();
    const ConstTensorView losses = slots.pull(kEvalLossSlot);
    for (size_t t = 0; t < batch.targets.size(); ++t) {
      const double loss = get_element(losses, static_cast<int64_t>(t));
      const int32_t length = byte_lengths[static_cast<size_t>(batch.targets[t])];
      e.nats += loss;
      if (length > 0) e.byte_nats += loss;
      e.bytes += length;
      if (!e.has_floor) continue;
      const double lowest = static_cast<double>(batch.floor[t]);
      e.floor_nats += lowest;
      e.excess_squares += (loss - lowest) * (loss - lowest);
      const size_t skill = batch.skill[t];
      if (skill >= e.skill_tokens.size()) continue;
      e.skill_tokens[skill] += 1.0;
      e.skill_loss[skill] += loss;
      e.skill_floor[skill] += lowest;
    }
    e.tokens += static_cast<int64_t>(batch.targets.size());
  }
  return e;
}

EvaluateResult evaluate_checkpoint(const EvaluateRequest& request, const std::atomic<bool>& stop) {
  const NanochatConfig model = load_checkpoint_config(request.checkpoint);
  const Json state = load_checkpoint_state(request.checkpoint);
  const std::string where = request.checkpoint + "/state.json";
  EvaluateResult result;
  result.data = request.data.value_or(get_string(state, "data_path", where));
  const Tokenizer tokenizer = Tokenizer::load(
      (std::filesystem::path(request.checkpoint) / CheckpointFiles::kTokenizer).string());
  if (tokenizer.vocab_size() != model.vocab_size)
    fail(ErrorKind::data, "{}: the tokenizer has {} tokens, the model {}", request.checkpoint,
         tokenizer.vocab_size(), model.vocab_size);
  const std::optional<int32_t> bos = tokenizer.bos_id();
  if (!bos) fail(ErrorKind::data, "{}: the tokenizer has no BOS", request.checkpoint);
  if (std::filesystem::exists(std::filesystem::path(result.data) / "tokenizer.json") &&
      Tokenizer::load(result.data).content_hash() != tokenizer.content_hash())
    throw Error(
        ErrorKind::data,
        fmt::format("the tokens in '{}' were made with another tokenizer than the checkpoint's",
                    result.data))
        .with_hint(fmt::format("tokenize the text with {}/tokenizer.json", request.checkpoint));

  const DatasetShards shards = find_shards(result.data);
  if (shards.val.empty())
    fail(ErrorKind::data, "'{}' has no validation shard (a name with 'val')", result.data);
  const DocumentOptions documents{
      .shards = shards.val, .bos = *bos, .vocab_size = model.vocab_size};
  int64_t available = 0;
  for (const std::string& path : shards.val) {
    const TokenShard shard(path);
    shard.check_vocab(model.vocab_size);
    available += shard.count();
  }
  const int64_t batch_tokens = request.batch * model.sequence_len;
  const int64_t wanted = std::min(available, request.tokens.value_or(available));
  const int64_t batches = std::max<int64_t>(1, wanted / batch_tokens);

  const TrainPrograms programs =
      build_train_programs({.model = model,
                            .batch = request.batch,
                            .rewrites = {"fused-qk-norm", "fused-relu2", "fused-rmsnorm"},
                            .device = request.device},
                           {});
  const SlotStore slots(programs.slots, request.device);
  const Workspace workspace({&programs.evaluation.plan});
  Executable program(programs.evaluation.program, programs.evaluation.plan, slots, workspace);
  load_checkpoint_slots(request.checkpoint, slots, false);
  init_rope_table(model, slots.host("rope_table"));
  slots.push("rope_table");
  Batch batch;
  const std::optional<Evaluation> done =
      evaluate(program, slots, documents, batches, tokenizer.byte_lengths(), batch, stop);
  if (!done)
    throw Error(ErrorKind::interrupted, "interrupted before the evaluation was done")
        .with_hint("--tokens evaluates less: --tokens 1000000");
  result.evaluation = *done;
  return result;
}

}  // namespace tightloop
