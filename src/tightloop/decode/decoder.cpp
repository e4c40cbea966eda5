#include "tightloop/decode/decoder.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/rewrite/rewrite.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/sample/sample.h"

namespace tightloop {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string step_slot(std::string_view what, int64_t count) {
  return fmt::format("decode.{}.{}", what, count);
}

}  // namespace

Decoder::Decoder(const NanochatConfig& config,
                 DType dtype,
                 int64_t positions,
                 const SlotStore* weights)
    : config_(config),
      positions_(std::max(positions, kChunk)),
      table_(std::make_shared<SlotTable>()) {
  if (dtype != DType::f32 && dtype != DType::bf16)
    fail(ErrorKind::usage, "weights can be f32 or bf16, not {}", name_of(dtype));
  declare_nanochat(*table_, config_, dtype, positions_);
  declare_nanochat_cache(*table_, config_, 1, positions_, DType::f32);
  table_->add({"pos", {DType::i32, {}}, SlotRole::scalar});

  std::vector<Program> programs;
  const std::vector<std::string> rewrites{"fused-qk-norm", "fused-relu2", "fused-rmsnorm"};
  for (const int64_t count : {kChunk, int64_t{1}}) {
    table_->add({step_slot("tokens", count), {DType::i32, {1, count}}, SlotRole::input});
    Program program(count == 1 ? "decode" : "prompt chunk", table_);
    Builder b(program, op_table());
    const Value logits =
        nanochat_decode_logits(b, config_, b.slot(step_slot("tokens", count)), b.slot("pos"));
    table_->add({step_slot("logits", count), program.type(logits), SlotRole::output});
    store(b, logits, b.slot(step_slot("logits", count)), false);
    apply_rewrites(program, op_table(), rewrites, {});
    plans_.push_back(make_plan(program, Device::cpu));
    programs.push_back(std::move(program));
  }
  slots_ = std::make_unique<SlotStore>(table_, Device::cpu, weights);
  workspace_ = std::make_unique<Workspace>(std::vector<const Plan*>{&plans_[0], &plans_[1]});
  steps_.push_back(make_step(kChunk, std::move(programs[0]), plans_[0]));
  steps_.push_back(make_step(1, std::move(programs[1]), plans_[1]));
  init_rope_table(config_, slots_->view("rope_table"));
}

Decoder::Step Decoder::make_step(int64_t count, Program program, Plan plan) const {
  return {Executable(std::move(program), std::move(plan), *slots_, *workspace_),
          slots_->view(step_slot("tokens", count)), slots_->view(step_slot("logits", count)),
          count};
}

void Decoder::set_parameter(const std::string& name, const ConstTensorView& value) {
  const TensorView slot = slots_->view(name);
  if (!(slot.shape() == value.shape()))
    fail(ErrorKind::data, "parameter '{}' has shape {}, expected {}", name,
         to_string(value.shape()), to_string(slot.shape()));
  if (slot.dtype() == value.dtype()) {
    std::memcpy(slot.data, value.data, static_cast<size_t>(slot.bytes()));
    return;
  }
  for (int64_t i = 0; i < slot.elems(); ++i) set_element(slot, i, get_element(value, i));
}

std::span<const float> Decoder::run(Step& step, std::span<const int32_t> tokens) {
  std::memcpy(step.tokens.data, tokens.data(), tokens.size() * sizeof(int32_t));
  *slots_->view("pos").as<int32_t>() = static_cast<int32_t>(position_);
  step.exe.run();
  position_ += step.count;
  const int64_t width = step.logits.shape().cols();
  return {step.logits.as<float>() + (step.count - 1) * width,
          static_cast<size_t>(config_.vocab_size)};
}

std::span<const float> Decoder::forward(std::span<const int32_t> tokens) {
  TL_CHECK(!tokens.empty());
  if (position_ + static_cast<int64_t>(tokens.size()) > positions_)
    fail(ErrorKind::usage, "{} tokens do not fit: the cache holds {} and {} are used",
         tokens.size(), positions_, position_);
  for (int32_t token : tokens) {
    if (token < 0 || token >= config_.vocab_size)
      fail(ErrorKind::data, "token {} is outside the model's vocabulary of {}", token,
           config_.vocab_size);
  }
  std::span<const float> logits;
  while (!tokens.empty()) {
    Step& step = static_cast<int64_t>(tokens.size()) >= kChunk ? steps_[0] : steps_[1];
    logits = run(step, tokens.first(static_cast<size_t>(step.count)));
    tokens = tokens.subspan(static_cast<size_t>(step.count));
  }
  return logits;
}

int64_t Decoder::weight_bytes() const {
  int64_t bytes = 0;
  for (const NanochatParameter& p : nanochat_parameters(config_)) {
    const int64_t stored = slots_->view(p.name).bytes();
    bytes += p.embedding ? stored / p.shape[0] : stored;  // one row of a table
  }
  return bytes;
}

std::vector<MemoryLine> Decoder::memory() const {
  return memory_table(*table_, Device::cpu, {&plans_[0], &plans_[1]});
}

namespace {

void check(const SamplingOptions& o) {
  const auto expect = [](bool ok, std::string_view flag, auto value, std::string_view range) {
    if (!ok) fail(ErrorKind::usage, "{} {} is impossible: expected {}", flag, value, range);
  };
  expect(o.temperature >= 0.0 && o.temperature < HUGE_VAL, "--temperature", o.temperature,
         "0 or more");
  expect(o.top_k >= 0, "--top-k", o.top_k, "0 or more");
  expect(o.top_p > 0.0 && o.top_p <= 1.0, "--top-p", o.top_p, "more than 0, at most 1");
  expect(o.min_p >= 0.0 && o.min_p <= 1.0, "--min-p", o.min_p, "0 to 1");
}

/// Draws tokens; its scratch is allocated once.
class Sampler {
 public:
  Sampler(int64_t vocab, const SamplingOptions& options)
      : options_{.vocab = vocab,
                 .temperature = options.temperature,
                 .top_k = options.top_k,
                 .top_p = options.top_p,
                 .min_p = options.min_p},
        rng_(options.seed, 0),
        scratch_(static_cast<size_t>(vocab * 12 * thread_count() + 64)) {}

  int32_t draw(std::span<const float> logits) {
    const auto uniform = static_cast<float>(rng_.next_u32() >> 8) * 0x1.0p-24f;
    int32_t token = 0;
    sample_run({.device = Device::cpu, .scratch = scratch_},
               {.logits = {logits.data(), {DType::f32, {1, static_cast<int64_t>(logits.size())}}},
                .uniform = {&uniform, {DType::f32, {1}}},
                .token = {&token, {DType::i32, {1}}},
                .options = options_});
    return token;
  }

 private:
  SampleOptions options_;
  Rng rng_;
  std::vector<std::byte> scratch_;
};

}  // namespace

GenerateResult generate(Decoder& decoder,
                        std::span<const int32_t> prompt,
                        const GenerateOptions& options,
                        std::optional<int32_t> eos,
                        const std::function<bool(int32_t)>& on_token) {
  check(options.sampling);
  if (prompt.empty()) fail(ErrorKind::usage, "the prompt has no tokens");
  const auto needed = static_cast<int64_t>(prompt.size()) + options.max_tokens;
  if (needed > decoder.positions())
    fail(ErrorKind::usage,
         "a prompt of {} tokens and {} new ones do not fit in {} positions: ask for at most {} new",
         prompt.size(), options.max_tokens, decoder.positions(),
         std::max<int64_t>(0, decoder.positions() - static_cast<int64_t>(prompt.size())));
  GenerateResult result;
  decoder.reset();
  auto start = std::chrono::steady_clock::now();
  std::span<const float> logits = decoder.forward(prompt);
  result.prompt_seconds = seconds_since(start);

  Sampler sampler(decoder.config().vocab_size, options.sampling);
  start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const int32_t token = sampler.draw(logits);
    result.stopped_at_eos = options.stop_at_eos && eos == token;
    if (result.stopped_at_eos) break;
    result.tokens.push_back(token);
    if (!on_token(token) || i + 1 == options.max_tokens) break;
    logits = decoder.forward({&token, 1});
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace tightloop
