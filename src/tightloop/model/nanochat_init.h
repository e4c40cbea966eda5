#pragma once

#include "tightloop/model/nanochat.h"

namespace tightloop {

/// Fills one parameter as its Init says. Draw i of parameter p is a pure function of (seed, p's
/// name, i): the values depend on neither order nor threads. `out` is f32, bf16 (rounded) or f64
/// (the f32 values widened).
void init_parameter(const NanochatParameter& parameter, uint64_t seed, const TensorView& out);

/// Fills the rope table slot for these positions.
void init_rope_table(const NanochatConfig& config, const TensorView& table);

/// The config as nanochat's metadata names it, for checkpoints; and back. Error{data} names the
/// field.
std::string nanochat_config_json(const NanochatConfig& config);
NanochatConfig nanochat_config_from_json(const std::string& text, const std::string& name);

}  // namespace tightloop
