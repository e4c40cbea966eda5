#include "tightloop/model/nanochat_init.h"

#include <nlohmann/json.hpp>

#include "tightloop/core/json.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/sha256.h"
#include "tightloop/ops/rope/rope.h"

namespace tightloop {
namespace {

/// Philox stream of a parameter: the first 8 bytes of its name's SHA-256.
uint64_t stream_of(const std::string& name) {
  Sha256 hash;
  hash.update(name.data(), name.size());
  const auto digest = hash.finish();
  uint64_t stream = 0;
  for (size_t i = 0; i < 8; ++i) stream = stream << 8 | digest[i];
  return stream;
}

}  // namespace

void init_parameter(const NanochatParameter& p, uint64_t seed, const TensorView& out) {
  const int64_t n = p.shape.elems();
  std::vector<float> values;
  float* x = nullptr;
  if (out.dtype() == DType::f32) {
    x = out.as<float>();
  } else {
    values.resize(static_cast<size_t>(n));
    x = values.data();
  }
  const auto a = static_cast<float>(p.init.a), b = static_cast<float>(p.init.b);
  switch (p.init.kind) {
    case Init::Kind::zero:
      std::fill(x, x + n, 0.0f);
      break;
    case Init::Kind::constant:
      std::fill(x, x + n, a);
      break;
    case Init::Kind::uniform:
      fill_uniform(x, n, seed, stream_of(p.name), a, b);
      break;
    case Init::Kind::normal:
      fill_normal(x, n, seed, stream_of(p.name), a, b);
      break;
    case Init::Kind::per_layer:
      for (int64_t i = 0; i < n; ++i)
        x[i] = static_cast<float>(p.init.a + p.init.b * static_cast<double>(i));
      break;
  }
  if (out.dtype() == DType::f32) return;
  for (int64_t i = 0; i < n; ++i)
    set_element(out, i, static_cast<double>(values[static_cast<size_t>(i)]));
}

void init_rope_table(const NanochatConfig& config, const TensorView& table) {
  fill_rope_table(table, config.rope_theta());
}

std::string nanochat_config_json(const NanochatConfig& c) {
  OrderedJson json;
  json["model"] = "nanochat";
  json["recipe"] = name_of(c.recipe);
  json["sequence_len"] = c.sequence_len;
  json["vocab_size"] = c.vocab_size;
  json["n_layer"] = c.n_layer;
  json["n_head"] = c.n_head;
  json["n_kv_head"] = c.n_kv_head;
  json["n_embd"] = c.n_embd;
  json["window_pattern"] = c.window_pattern;
  return json.dump(1);
}

NanochatConfig nanochat_config_from_json(const std::string& text, const std::string& name) {
  const Json json = parse_json(text, name);
  NanochatConfig c;
  const std::string recipe = get_string(json, "recipe", name, "2026-07");
  c.sequence_len = get_int(json, "sequence_len", name);
  c.vocab_size = get_int(json, "vocab_size", name);
  c.n_layer = get_int(json, "n_layer", name);
  c.n_head = get_int(json, "n_head", name);
  c.n_kv_head = get_int(json, "n_kv_head", name);
  c.n_embd = get_int(json, "n_embd", name);
  c.window_pattern = get_string(json, "window_pattern", name);
  // Sizes from a file drive allocations: refuse what no model has.
  for (const auto& [field, value] :
       {std::pair<const char*, int64_t>{"sequence_len", c.sequence_len},
        {"vocab_size", c.vocab_size},
        {"n_layer", c.n_layer},
        {"n_head", c.n_head},
        {"n_kv_head", c.n_kv_head},
        {"n_embd", c.n_embd}}) {
    if (value < 1 || value > (1 << 24))
      fail(ErrorKind::data, "{}: {} is {}, expected 1 to {}", name, field, value, 1 << 24);
  }
  if (c.n_layer > 4096)
    fail(ErrorKind::data, "{}: n_layer is {}, expected 1 to 4096", name, c.n_layer);
  try {
    c.recipe = parse_recipe(recipe);
    c.check();
  } catch (const Error& e) {
    fail(ErrorKind::data, "{}: {}", name, e.message());
  }
  return c;
}

}  // namespace tightloop
