#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tightloop/engine/executable.h"
#include "tightloop/model/nanochat.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// Runs a nanochat model token by token over a key/value cache: one Program for prompt chunks, one
/// for single tokens, sharing weights and caches.
class Decoder {
 public:
  static constexpr int64_t kChunk = 32;  // tokens of a prompt chunk

  /// Weights are stored as `dtype` (f32 or bf16). `positions`: how many tokens fit in the cache (at
  /// least kChunk). `weights`: a store that has them already as `dtype`, to be read where they lie;
  /// it must outlive the decoder.
  Decoder(const NanochatConfig& config,
          DType dtype,
          int64_t positions,
          const SlotStore* weights = nullptr);

  const NanochatConfig& config() const { return config_; }
  int64_t positions() const { return positions_; }
  /// Where a parameter lives, to be filled by the caller; rounding to `dtype` is set_parameter's.
  void set_parameter(const std::string& name, const ConstTensorView& value);

  /// Forgets everything decoded.
  void reset() { position_ = 0; }
  int64_t position() const { return position_; }
  /// Appends tokens (at least one) and returns the logits (vocab_size) after the last, valid until
  /// the next call. Error{usage} when the cache is full; Error{data} for a token outside the
  /// vocabulary.
  std::span<const float> forward(std::span<const int32_t> tokens);

  /// Bytes of weights that one token reads at least.
  int64_t weight_bytes() const;
  std::vector<MemoryLine> memory() const;

 private:
  struct Step {
    Executable exe;
    TensorView tokens;
    TensorView logits;
    int64_t count;
  };
  Step make_step(int64_t count, Program program, Plan plan) const;
  std::span<const float> run(Step& step, std::span<const int32_t> tokens);

  NanochatConfig config_;
  int64_t positions_;
  int64_t position_ = 0;
  std::shared_ptr<SlotTable> table_;
  std::unique_ptr<SlotStore> slots_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<Plan> plans_;
  std::vector<Step> steps_;  // chunk, single
};

/// How the next token is drawn from the logits.
struct SamplingOptions {
  double temperature = 1.0;  // 0: the most likely token
  int64_t top_k = 0;         // 0: off
  double top_p = 1.0;
  double min_p = 0.0;
  uint64_t seed = 0;
};

struct GenerateOptions {
  int64_t max_tokens = 64;
  SamplingOptions sampling;
  bool stop_at_eos = true;
};

struct GenerateResult {
  std::vector<int32_t> tokens;  // without the prompt
  double prompt_seconds = 0.0;
  double decode_seconds = 0.0;
  bool stopped_at_eos = false;
};

/// Continues `prompt` (token ids, at least one). Draw i uses element i of Philox stream (seed, 0),
/// so the same seed gives the same text. `on_token` is called after each token; returning false
/// stops. Error{usage} for impossible options, or when prompt and answer do not fit in the
/// decoder's cache.
GenerateResult generate(Decoder& decoder,
                        std::span<const int32_t> prompt,
                        const GenerateOptions& options,
                        std::optional<int32_t> eos,
                        const std::function<bool(int32_t)>& on_token);

}  // namespace tightloop
