#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tightloop/core/recipe.h"
#include "tightloop/core/tensor.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// The nanochat GPT: parameter-free RMS norms, rotary positions, QK-norm, value embeddings with
/// gates on every second layer, relu² MLP, sliding windows, soft-capped logits, per-layer residual
/// scalars; in recipe 2026-07 also a smear of neighbouring embeddings and a backout of the middle
/// layer. Source: karpathy/nanochat at c7ba252 (2026-02) and 92d63d4 (2026-07); sizes and formulas
/// in docs/numerics.md.
struct NanochatConfig {
  Recipe recipe = Recipe::nanochat_2026_07;
  int64_t sequence_len = 2048;
  int64_t vocab_size = 32768;
  int64_t n_layer = 20;
  int64_t n_head = 10;
  int64_t n_kv_head = 10;
  int64_t n_embd = 1280;
  std::string window_pattern = "SSSL";

  int64_t head_dim() const { return n_embd / n_head; }
  int64_t padded_vocab() const { return (vocab_size + 63) / 64 * 64; }
  /// Left reach of layer i: keys i-w..i are visible. 'L' is the whole sequence, 'S' short; the last
  /// layer is always long. Short: T/2 (2026-02); T/4 rounded up to a multiple of 128 (2026-07).
  int64_t window(int64_t layer) const;
  bool has_value_embedding(int64_t layer) const { return layer % 2 == (n_layer - 1) % 2; }
  /// Channels of the normed input that a value gate reads: 32 (2026-02), 12 (2026-07).
  int64_t gate_channels() const { return recipe == Recipe::nanochat_2026_02 ? 32 : 12; }
  double rope_theta() const { return recipe == Recipe::nanochat_2026_02 ? 1e4 : 1e5; }

  /// Error{usage} naming the flag and the nearest valid values when a size is impossible.
  void check() const;
  bool operator==(const NanochatConfig&) const = default;
};

/// The one dial: width = depth * aspect rounded up to a multiple of head_dim.
NanochatConfig nanochat_from_depth(Recipe recipe,
                                   int64_t depth,
                                   int64_t aspect_ratio,
                                   int64_t head_dim,
                                   int64_t sequence_len,
                                   int64_t vocab_size,
                                   const std::string& window_pattern);

/// How a parameter starts.
struct Init {
  enum class Kind { zero, constant, uniform, normal, per_layer } kind = Kind::zero;
  double a = 0.0;  // constant; uniform from; normal mean; value of layer 0
  double b = 0.0;  // uniform to; normal stddev; slope per layer
};

struct NanochatParameter {
  std::string name;  // nanochat's
  Shape shape;
  Init init;
  bool embedding = false;  // looked up by token: no matrix product
};

/// Every parameter in nanochat's order (a block: c_q, c_k, c_v, c_proj, ve_gate, c_fc, c_proj).
std::vector<NanochatParameter> nanochat_parameters(const NanochatConfig& config);

struct NanochatSizes {
  int64_t parameters = 0;  // all elements
  int64_t matrices = 0;    // transformer matrices, gates included
  int64_t scaling = 0;     // matrices + output head: N of the scaling laws
  int64_t value_embeddings = 0;
  int64_t flops_per_token = 0;  // training: 6 x matrix parameters + 12 H d min(window, T) a layer
};
NanochatSizes nanochat_sizes(const NanochatConfig& config);

/// Declares the parameter slots and the constant rope table (`positions` rows).
/// `dtype` is how weights are stored: f32 for training, bf16 for decoding.
void declare_nanochat(SlotTable& slots,
                      const NanochatConfig& config,
                      DType dtype,
                      int64_t positions);

/// The logits (B, T, padded vocabulary) of the whole sequence, after the soft cap, in f32.
/// tokens: i32 (B, T). `dtype` (f32 or bf16) is what products and activations are computed and
/// stored in; parameters are cast to it, except the tables, whose rows are, and the gates and
/// scalars, which stay f32.
Value nanochat_logits(Builder& b,
                      const NanochatConfig& config,
                      Value tokens,
                      DType dtype = DType::f32);

/// What the logits of a loss are stored in. Those of a Program that evaluates are not rounded;
/// where gradients flow they are what everything else is, for the memory.
enum class LogitsDtype : uint8_t { f32, as_activations };

/// Per-token loss (B, T), f32: cross-entropy over the first vocab_size columns, 0 where the target
/// is -1.
Value nanochat_loss(Builder& b,
                    const NanochatConfig& config,
                    Value tokens,
                    Value targets,
                    DType dtype,
                    LogitsDtype logits_dtype);

/// Slots of the key/value caches and the smear's last embedding, for `batch` rows of `positions`.
void declare_nanochat_cache(
    SlotTable& slots, const NanochatConfig& config, int64_t batch, int64_t positions, DType dtype);

/// The logits (B, chunk, padded vocabulary) of a chunk of tokens (B, chunk) whose first has
/// position `pos` (i32 scalar), reading and extending the caches.
Value nanochat_decode_logits(Builder& b, const NanochatConfig& config, Value tokens, Value pos);

}  // namespace tightloop
