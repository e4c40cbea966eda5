#include "tightloop/engine/rewrite/rewrite.h"

#include <algorithm>

namespace tightloop {
namespace {

constexpr Rewrite kRewrites[] = {
    {"fused-qk-norm", "rotary embedding and QK-norm in one pass", true, rewrite_fused_qknorm_rope},
    {"fused-relu2", "relu^2 inside the matrix products around it", true, rewrite_fused_relu2},
    {"fused-rmsnorm", "residual or scaled add and RMSNorm in one pass, forward and backward", true,
     rewrite_fused_rmsnorm},
    {"chunked-ce", "head, soft cap and cross-entropy in row chunks, logits never stored whole",
     true, rewrite_chunked_ce},
};

Cost total(const std::vector<RewriteSite>& sites, Cost RewriteSite::*which) {
  Cost sum;
  for (const RewriteSite& site : sites) sum += site.*which;
  return sum;
}

}  // namespace

Cost RewriteReport::before() const {
  return total(applied, &RewriteSite::before);
}
Cost RewriteReport::after() const {
  return total(applied, &RewriteSite::after);
}

std::span<const Rewrite> all_rewrites() {
  return kRewrites;
}

std::vector<RewriteReport> apply_rewrites(Program& program,
                                          const OpTable& ops,
                                          std::span<const std::string> names,
                                          const RewriteOptions& options) {
  std::vector<std::string> known;
  for (const Rewrite& rewrite : kRewrites) known.emplace_back(rewrite.name);
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      fail(ErrorKind::usage, "unknown rewrite '{}'; did you mean '{}'?", name,
           nearest_name(name, known));
  }
  std::vector<RewriteReport> reports;
  for (const Rewrite& rewrite : kRewrites) {
    if (std::find(names.begin(), names.end(), rewrite.name) == names.end()) continue;
    reports.push_back(rewrite.apply(program, ops, options));
    try {
      program.validate();
    } catch (Error& e) {
      e.with_context(fmt::format("after rewrite {}", rewrite.name));
      throw;
    }
  }
  return reports;
}

}  // namespace tightloop
