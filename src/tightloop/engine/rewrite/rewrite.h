#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/program/builder.h"

namespace tightloop {

/// One place where a rewrite replaced a group of ops, and what it claims to save.
struct RewriteSite {
  std::string scope;
  std::string what;  // "add + scaled_add + rmsnorm -> residual_rmsnorm"
  Cost before;
  Cost after;
};

struct RewriteReport {
  std::string name;
  std::vector<RewriteSite> applied;
  std::vector<std::string> not_applied;  // "layer 0/mlp: relu2's input has another reader"

  Cost before() const;
  Cost after() const;
};

struct RewriteOptions {
  /// --ce-chunk-bytes: at most this much for the logits and their gradient.
  int64_t ce_chunk_bytes = int64_t{64} << 20;
};

/// A pass over a Program: a pattern, a precondition, a replacement. It never changes the function.
struct Rewrite {
  std::string_view name;  // the flag is --<name>
  std::string_view help;
  bool on_by_default = false;
  RewriteReport (*apply)(Program& program, const OpTable& ops, const RewriteOptions& options);
};

/// Every rewrite, in the order in which they are applied.
std::span<const Rewrite> all_rewrites();

/// Applies the named rewrites in order and validates the Program after each.
/// Error{usage} for an unknown name.
std::vector<RewriteReport> apply_rewrites(Program& program,
                                          const OpTable& ops,
                                          std::span<const std::string> names,
                                          const RewriteOptions& options);

RewriteReport rewrite_fused_rmsnorm(Program&, const OpTable&, const RewriteOptions&);
RewriteReport rewrite_chunked_ce(Program&, const OpTable&, const RewriteOptions&);
RewriteReport rewrite_fused_relu2(Program&, const OpTable&, const RewriteOptions&);
RewriteReport rewrite_fused_qknorm_rope(Program&, const OpTable&, const RewriteOptions&);

}  // namespace tightloop
