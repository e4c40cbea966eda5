// Stands in for engine/rewrite/rewrite.cpp in the program that tests/cli/check_test.py runs: of its
// rewrites chunked-ce never finds a site.
#include <algorithm>

#include "tightloop/engine/rewrite/rewrite.h"

namespace tightloop {
namespace {

RewriteReport find_no_site(Program&, const OpTable&, const RewriteOptions&) {
  return {"chunked-ce", {}, {"loss: the logits have another reader"}};
}

constexpr Rewrite kRewrites[] = {
    {"fused-qk-norm", "as ever", true, rewrite_fused_qknorm_rope},
    {"fused-relu2", "as ever", true, rewrite_fused_relu2},
    {"fused-rmsnorm", "as ever", true, rewrite_fused_rmsnorm},
    {"chunked-ce", "finds no site", true, find_no_site},
};

}  // namespace

Cost RewriteReport::before() const {
  return {};
}
Cost RewriteReport::after() const {
  return {};
}

std::span<const Rewrite> all_rewrites() {
  return kRewrites;
}

std::vector<RewriteReport> apply_rewrites(Program& program,
                                          const OpTable& ops,
                                          std::span<const std::string> names,
                                          const RewriteOptions& options) {
  std::vector<RewriteReport> reports;
  for (const Rewrite& rewrite : kRewrites) {
    if (std::find(names.begin(), names.end(), rewrite.name) != names.end())
      reports.push_back(rewrite.apply(program, ops, options));
  }
  return reports;
}

}  // namespace tightloop
