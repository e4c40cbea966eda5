#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/builder.h"

namespace tightloop {

/// How the next token is chosen. Filters apply in this order; each works on what the ones before
/// it kept, and equal logits count in order of token id.
struct SampleOptions {
  int64_t vocab = 0;         // tokens; logits beyond them are padding
  double temperature = 1.0;  // 0: the largest logit, and the filters do not matter
  int64_t top_k = 0;         // keep the k most probable; 0: all
  double top_p = 1.0;        // keep the fewest most probable that hold this share; 1: all
  double min_p = 0.0;        // keep those at least this share of the most probable; 0: all
};

/// One token per row. With weights e^((z - max z) / temperature) of the tokens kept, the token
/// drawn is the first, by id, whose running sum exceeds uniform * (sum of all). Shapes: logits (B,
/// Vp), uniform (B) in [0, 1); token (B) i32. Types: f32; weights and sums in float64 on every
/// device. Scratch: 12 * vocab bytes per thread. Errors: Error{shape, dtype}; Error{usage} for an
/// option out of range; Error{numeric} when a row's largest logit is not finite. Source: top-p
/// arXiv:1904.09751, min-p arXiv:2407.01082.
struct Sample {
  ConstTensorView logits, uniform;
  TensorView token;
  SampleOptions options;
};
void sample_run(const Exec& exec, const Sample& args);

/// token of Sample.
Value sample(Builder& b, Value logits, Value uniform, const SampleOptions& options);

}  // namespace tightloop
