#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/exec.h"
#include "tightloop/engine/rewrite/rewrite.h"

namespace tightloop {

/// One compared quantity of a parity case.
struct CaseQuantity {
  std::string name;    // "loss.step<i>", "token_losses", "logits", "grad.<parameter>",
                       // "final.<parameter>"
  double error = 0.0;  // measured as the tolerance is
  double tolerance = 0.0;
  bool ok() const { return error <= tolerance; }  // false for NaN
};

struct CaseReport {
  std::string folder;
  Device device = Device::cpu;
  DType dtype = DType::f32;
  std::vector<std::string> rewrites;
  std::vector<CaseQuantity> quantities;
  std::vector<std::string> failures;  // in words: a rewrite that did not apply, a text that differs

  bool ok() const;
  /// The quantity that uses most of its tolerance.
  const CaseQuantity* worst() const;
};

struct CaseOptions {
  Device device = Device::cpu;
  std::vector<std::string> rewrites;
  DType dtype = DType::f32;  // of products and activations
};

/// "nanochat" or "bpe": the "model" of case.json. Error{data} naming file and field;
/// Error{unsupported} for a kind this build does not run.
std::string case_kind(const std::string& folder);

/// One sentence for each rewrite of the reports that replaced nothing in the Program `program`.
std::vector<std::string> unapplied_rewrites(std::string_view program,
                                            std::span<const RewriteReport> reports);

/// Runs a nanochat case: logits from a forward Program; losses, gradients and updates from the
/// training and optimizer Programs with the given rewrites. Every requested rewrite must apply, in
/// the first and the later micro-steps, and all but chunked-ce in the Programs without a backward.
/// Errors, against the tolerances of case_file.h: loss |a-b| / |b|; logits by their largest
/// magnitude; the losses of the first step's tokens, and gradients, |a-b| / |b|, and final
/// parameters |a-b| / |update|, 2-norms of a tensor. In bf16 the bounds are bf16_tolerances().
CaseReport run_nanochat_case(const std::string& folder, const CaseOptions& options);

/// Runs a tokenizer case: every text must encode to its ids and decode back.
CaseReport run_tokenizer_case(const std::string& folder);

/// The sets of rewrites that parity is checked with: none, each alone, each pair, all, and 16
/// random ones drawn from `seed`; no set twice.
std::vector<std::vector<std::string>> rewrite_sweep(uint64_t seed);

}  // namespace tightloop
