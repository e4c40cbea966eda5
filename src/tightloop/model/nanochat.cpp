#include "tightloop/model/nanochat.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/attention_cached/attention_cached.h"
#include "tightloop/ops/basic/basic.h"
#include "tightloop/ops/cross_entropy/cross_entropy.h"
#include "tightloop/ops/embedding/embedding.h"
#include "tightloop/ops/head_gate/head_gate.h"
#include "tightloop/ops/linear/linear.h"
#include "tightloop/ops/relu2/relu2.h"
#include "tightloop/ops/rmsnorm/rmsnorm.h"
#include "tightloop/ops/rope/rope.h"
#include "tightloop/ops/scaled_add/scaled_add.h"
#include "tightloop/ops/smear/smear.h"
#include "tightloop/ops/softcap/softcap.h"

namespace tightloop {
namespace {

constexpr double kEps = 1.1920928955078125e-07;  // float32 machine epsilon
constexpr double kLogitCap = 15.0;
constexpr int64_t kSmearChannels = 24;
constexpr int64_t kIgnoredTarget = -1;

bool newer(const NanochatConfig& c) {
  return c.recipe == Recipe::nanochat_2026_07;
}

std::string block(int64_t layer, std::string_view tail) {
  return fmt::format("transformer.h.{}.{}", layer, tail);
}

}  // namespace

int64_t NanochatConfig::window(int64_t layer) const {
  const char kind = window_pattern[static_cast<size_t>(layer) % window_pattern.size()];
  if (kind == 'L' || layer == n_layer - 1) return sequence_len;
  if (recipe == Recipe::nanochat_2026_02) return sequence_len / 2;
  return ((sequence_len + 3) / 4 + 127) / 128 * 128;
}

void NanochatConfig::check() const {
  const auto positive = [](std::string_view flag, int64_t value) {
    if (value < 1) fail(ErrorKind::usage, "{} must be at least 1, got {}", flag, value);
  };
  positive("--max-seq-len", sequence_len);
  positive("vocabulary size", vocab_size);
  positive("--depth", n_layer);
  positive("heads", n_head);
  positive("key/value heads", n_kv_head);
  positive("width", n_embd);
  if (n_embd % n_head != 0) {
    int64_t below = n_head, above = n_head;
    while (below > 1 && n_embd % below != 0) --below;
    while (above < n_embd && n_embd % above != 0) ++above;
    throw Error(
        ErrorKind::usage,
        fmt::format("width {} is not divisible by {} heads: the nearest head counts are {} and {}",
                    n_embd, n_head, below, above))
        .with_hint(fmt::format("`--head-dim {}` gives {} heads", n_embd / below, below));
  }
  if (n_head % n_kv_head != 0)
    fail(ErrorKind::usage, "{} query heads are not a multiple of {} key/value heads", n_head,
         n_kv_head);
  if (head_dim() % 2 != 0)
    throw Error(
        ErrorKind::usage,
        fmt::format(
            "head size {} is odd, rotary positions need an even one: the nearest are {} and {}",
            head_dim(), head_dim() - 1, head_dim() + 1))
        .with_hint(fmt::format("`--head-dim {}`", head_dim() + 1));
  const int64_t needed = newer(*this) ? kSmearChannels : gate_channels();
  if (n_embd < needed)
    fail(ErrorKind::usage, "width {} is too small: the gates read the first {} channels", n_embd,
         needed);
  if (window_pattern.empty() || window_pattern.find_first_not_of("SL") != std::string::npos)
    throw Error(ErrorKind::usage,
                fmt::format("--window-pattern '{}' must be a string of S (short) and L (long)",
                            window_pattern))
        .with_hint("`--window-pattern SSSL`, or L for the whole sequence in every layer");
}

NanochatConfig nanochat_from_depth(Recipe recipe,
                                   int64_t depth,
                                   int64_t aspect_ratio,
                                   int64_t head_dim,
                                   int64_t sequence_len,
                                   int64_t vocab_size,
                                   const std::string& window_pattern) {
  if (depth < 1) fail(ErrorKind::usage, "--depth must be at least 1, got {}", depth);
  if (aspect_ratio < 1)
    fail(ErrorKind::usage, "--aspect-ratio must be at least 1, got {}", aspect_ratio);
  if (head_dim < 2) fail(ErrorKind::usage, "--head-dim must be at least 2, got {}", head_dim);
  NanochatConfig config;
  config.recipe = recipe;
  config.sequence_len = sequence_len;
  config.vocab_size = vocab_size;
  config.n_layer = depth;
  config.n_embd = (depth * aspect_ratio + head_dim - 1) / head_dim * head_dim;
  config.n_head = config.n_kv_head = config.n_embd / head_dim;
  config.window_pattern = window_pattern;
  config.check();
  return config;
}

std::vector<NanochatParameter> nanochat_parameters(const NanochatConfig& c) {
  using Kind = Init::Kind;
  const int64_t Vp = c.padded_vocab(), C = c.n_embd, D = c.head_dim(), kv = c.n_kv_head * D;
  const double s = std::sqrt(3.0 / static_cast<double>(C));
  const Init uniform{Kind::uniform, -s, s}, zero{};
  const double last = static_cast<double>(std::max<int64_t>(c.n_layer - 1, 1));

  std::vector<NanochatParameter> p;
  p.push_back({"transformer.wte.weight", {Vp, C}, {Kind::normal, 0.0, newer(c) ? 0.8 : 1.0}, true});
  for (int64_t i = 0; i < c.n_layer; ++i) {
    p.push_back({block(i, "attn.c_q.weight"), {C, C}, uniform});
    p.push_back({block(i, "attn.c_k.weight"), {kv, C}, uniform});
    p.push_back({block(i, "attn.c_v.weight"), {kv, C}, uniform});
    p.push_back({block(i, "attn.c_proj.weight"), {C, C}, zero});
    if (c.has_value_embedding(i))
      p.push_back({block(i, "attn.ve_gate.weight"),
                   {c.n_kv_head, c.gate_channels()},
                   newer(c) ? Init{Kind::uniform, 0.0, 0.02} : zero});
    const double fc = newer(c) ? 0.4 * s : s;
    p.push_back({block(i, "mlp.c_fc.weight"), {4 * C, C}, {Kind::uniform, -fc, fc}});
    p.push_back({block(i, "mlp.c_proj.weight"), {C, 4 * C}, zero});
  }
  p.push_back({"lm_head.weight", {Vp, C}, {Kind::normal, 0.0, 0.001}});
  p.push_back({"resid_lambdas",
               {c.n_layer},
               newer(c) ? Init{Kind::per_layer, 1.15, -0.10 / last} : Init{Kind::constant, 1.0}});
  p.push_back({"x0_lambdas",
               {c.n_layer},
               newer(c) ? Init{Kind::per_layer, 0.20, -0.15 / last} : Init{Kind::constant, 0.1}});
  if (newer(c)) {
    p.push_back({"smear_gate.weight", {1, kSmearChannels}, {Kind::uniform, 0.0, 0.02}});
    p.push_back({"smear_lambda", {1}, zero});
    p.push_back({"backout_lambda", {1}, {Kind::constant, 0.2}});
  }
  for (int64_t i = 0; i < c.n_layer; ++i) {
    if (c.has_value_embedding(i))
      p.push_back({fmt::format("value_embeds.{}.weight", i), {Vp, kv}, uniform, true});
  }
  return p;
}

NanochatSizes nanochat_sizes(const NanochatConfig& c) {
  NanochatSizes sizes;
  int64_t multiplied = 0;
  for (const NanochatParameter& p : nanochat_parameters(c)) {
    const int64_t n = p.shape.elems();
    sizes.parameters += n;
    if (p.name.starts_with("transformer.h.")) sizes.matrices += n;
    if (p.name.starts_with("value_embeds.")) sizes.value_embeddings += n;
    if (p.name == "lm_head.weight") sizes.scaling += n;
    // Every Linear weight; 2026-02 counts all but embeddings and scalars, which is the same set.
    if (p.shape.rank() == 2 && !p.embedding) multiplied += n;
  }
  sizes.scaling += sizes.matrices;
  sizes.flops_per_token = 6 * multiplied;
  for (int64_t i = 0; i < c.n_layer; ++i)
    sizes.flops_per_token += 12 * c.n_head * c.head_dim() * std::min(c.window(i), c.sequence_len);
  return sizes;
}

namespace {

/// The gates are a few hundred numbers: always f32, like the vectors.
bool is_large(const NanochatParameter& p) {
  return p.shape.rank() == 2 && !p.name.ends_with("gate.weight");
}

}  // namespace

void declare_nanochat(SlotTable& slots,
                      const NanochatConfig& config,
                      DType dtype,
                      int64_t positions) {
  for (const NanochatParameter& p : nanochat_parameters(config)) {
    slots.add({p.name, {is_large(p) ? dtype : DType::f32, p.shape}, SlotRole::parameter});
  }
  slots.add({"rope_table", {DType::f32, {positions, config.head_dim()}}, SlotRole::constant});
}

namespace {

/// What differs between the uses of the same maths.
struct Mode {
  Value pos;                 // of a chunk that extends caches; empty: a whole sequence
  DType dtype = DType::f32;  // of products and activations
  std::unordered_map<std::string, Value> matrices = {};  // cast to it, by name
};

/// Products and activations in `dtype`: all matrices are cast to it at once.
Mode narrow_mode(Builder& b, const NanochatConfig& c, DType dtype) {
  Mode mode{.pos = {}, .dtype = dtype};
  if (dtype == DType::f32) return mode;
  std::vector<std::string> names;
  std::vector<Value> stored;
  for (const NanochatParameter& p : nanochat_parameters(c)) {
    if (p.embedding || !is_large(p)) continue;
    names.push_back(p.name);
    stored.push_back(b.slot(p.name));
  }
  b.set_scope("weights");
  const std::vector<Value> narrow =
      b.emit("cast", stored, {{"dtype", static_cast<int64_t>(dtype)}});
  for (size_t i = 0; i < names.size(); ++i) mode.matrices[names[i]] = narrow[i];
  return mode;
}

/// A matrix as its products want it. A bf16 one is read as it is stored.
Value matrix(Builder& b, const Mode& mode, const std::string& name) {
  const auto narrow = mode.matrices.find(name);
  return narrow == mode.matrices.end() ? b.slot(name) : narrow->second;
}

Value attention_block(
    Builder& b, const NanochatConfig& c, int64_t i, Value x, Value tokens, const Mode& mode) {
  const Shape& shape = b.type(x).shape;
  const int64_t B = shape[0], T = shape[1], D = c.head_dim();
  const Shape query{B, T, c.n_head, D}, key{B, T, c.n_kv_head, D};

  const Value h = rmsnorm(b, x, {}, kEps);
  // The first use of h: its backward comes last, and adds to a few columns of what is there.
  Value gate;
  if (c.has_value_embedding(i))
    gate = head_gate(b, h, b.slot(block(i, "attn.ve_gate.weight")), newer(c) ? 3.0 : 2.0);
  Value q = reshape(b, linear(b, h, matrix(b, mode, block(i, "attn.c_q.weight"))), query);
  Value k = reshape(b, linear(b, h, matrix(b, mode, block(i, "attn.c_k.weight"))), key);
  Value v = reshape(b, linear(b, h, matrix(b, mode, block(i, "attn.c_v.weight"))), key);
  if (c.has_value_embedding(i)) {
    const Value u = reshape(
        b, embedding(b, tokens, b.slot(fmt::format("value_embeds.{}.weight", i)), mode.dtype), key);
    v = gated_add(b, v, gate, u);
  }
  const Value table = b.slot("rope_table");
  const double qk_scale = newer(c) ? 1.2 : 1.0;
  q = rmsnorm(b, rope(b, q, table, mode.pos), {}, kEps, qk_scale);
  k = rmsnorm(b, rope(b, k, table, mode.pos), {}, kEps, qk_scale);

  const double softmax_scale = 1.0 / std::sqrt(static_cast<double>(D));
  const Value o =
      mode.pos ? attention_cached(b, q, k, v, mode.pos, b.slot(fmt::format("cache.{}.k", i)),
                                  b.slot(fmt::format("cache.{}.v", i)), c.window(i), softmax_scale)
               : attention(b, q, k, v, c.window(i), softmax_scale)[0];
  return linear(b, reshape(b, o, {B, T, c.n_embd}),
                matrix(b, mode, block(i, "attn.c_proj.weight")));
}

Value mlp_block(Builder& b, int64_t i, Value x, const Mode& mode) {
  const Value h = rmsnorm(b, x, {}, kEps);
  const Value hidden = relu2(b, linear(b, h, matrix(b, mode, block(i, "mlp.c_fc.weight"))));
  return linear(b, hidden, matrix(b, mode, block(i, "mlp.c_proj.weight")));
}

/// The normed residual stream (B, T, C) after the last layer.
Value trunk(Builder& b, const NanochatConfig& c, Value tokens, const Mode& mode) {
  b.set_scope("embed");
  Value x =
      rmsnorm(b, embedding(b, tokens, b.slot("transformer.wte.weight"), mode.dtype), {}, kEps);
  if (newer(c)) {
    const Value gate = b.slot("smear_gate.weight"), lambda = b.slot("smear_lambda");
    if (mode.pos)
      x = smear_cached(b, x, gate, lambda, mode.pos, b.slot("cache.smear"));
    else if (b.type(x).shape[1] > 1)
      x = smear(b, x, gate, lambda);
  }
  const Value x0 = x;
  Value middle;
  for (int64_t i = 0; i < c.n_layer; ++i) {
    b.set_scope(fmt::format("layer {}/attn", i));
    x = scaled_add(b, x, x0, {.vector = b.slot("resid_lambdas"), .index = i},
                   {.vector = b.slot("x0_lambdas"), .index = i});
    x = add(b, x, attention_block(b, c, i, x, tokens, mode));
    b.set_scope(fmt::format("layer {}/mlp", i));
    x = add(b, x, mlp_block(b, i, x, mode));
    if (newer(c) && i == c.n_layer / 2) middle = x;
  }
  b.set_scope("head");
  if (newer(c))
    x = scaled_add(b, x, middle, {}, {.vector = b.slot("backout_lambda"), .constant = -1.0});
  return rmsnorm(b, x, {}, kEps);
}

/// Logits, in f32 or in the type of x.
Value head(Builder& b, Value x, const Mode& mode, bool f32) {
  const Value w = matrix(b, mode, "lm_head.weight");
  return softcap(b, f32 ? linear_f32(b, x, w) : linear(b, x, w), kLogitCap);
}

}  // namespace

Value nanochat_logits(Builder& b, const NanochatConfig& config, Value tokens, DType dtype) {
  const Mode mode = narrow_mode(b, config, dtype);
  return head(b, trunk(b, config, tokens, mode), mode, true);
}

Value nanochat_loss(Builder& b,
                    const NanochatConfig& config,
                    Value tokens,
                    Value targets,
                    DType dtype,
                    LogitsDtype logits_dtype) {
  const Mode mode = narrow_mode(b, config, dtype);
  const Value logits =
      head(b, trunk(b, config, tokens, mode), mode, logits_dtype == LogitsDtype::f32);
  return cross_entropy(b, logits, targets, {},
                       {.vocab = config.vocab_size, .ignore_index = kIgnoredTarget})
      .loss;
}

void declare_nanochat_cache(
    SlotTable& slots, const NanochatConfig& config, int64_t batch, int64_t positions, DType dtype) {
  const Type cache{dtype, {batch, config.n_kv_head, positions, config.head_dim()}};
  for (int64_t i = 0; i < config.n_layer; ++i) {
    slots.add({fmt::format("cache.{}.k", i), cache, SlotRole::cache});
    slots.add({fmt::format("cache.{}.v", i), cache, SlotRole::cache});
  }
  if (newer(config))
    slots.add({"cache.smear", {DType::f32, {batch, config.n_embd}}, SlotRole::cache});
}

Value nanochat_decode_logits(Builder& b, const NanochatConfig& config, Value tokens, Value pos) {
  const Mode mode{.pos = pos};
  return head(b, trunk(b, config, tokens, mode), mode, true);
}

}  // namespace tightloop
