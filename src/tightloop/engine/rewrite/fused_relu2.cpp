#include "tightloop/engine/rewrite/editor.h"

namespace tightloop {

// Forward:  linear -> relu2                      =>  linear_relu2, which keeps only y = relu2(x
// w^T) Backward: linear_dx -> relu2_bwd(dh, pre)      =>  linear_dx_relu2(dz, w, y), since 2 relu =
// 2 sqrt(y) The pre-activation is then stored nowhere, so both directions are replaced, or neither.
RewriteReport rewrite_fused_relu2(Program& program, const OpTable& ops, const RewriteOptions&) {
  RewriteReport report{"fused-relu2", {}, {}};
  Editor edit(program, ops);
  for (int r = 0; r < edit.size(); ++r) {
    if (!edit.is(r, "relu2") || edit.removed(r)) continue;
    const Op relu = edit.op(r);
    const auto refuse = [&](std::string_view why) {
      report.not_applied.push_back(fmt::format("{}: {}", relu.scope, why));
    };
    const Value pre = relu.inputs[0], y = relu.outputs[0];
    const int product = edit.producer(pre, "linear");
    if (product == Editor::kNone) {
      refuse("relu2's input does not come from a linear layer");
      continue;
    }
    int backward = Editor::kNone, upstream = Editor::kNone;
    bool other_reader = false;
    for (int user : edit.users(pre)) {
      if (user == r) continue;
      if (edit.is(user, "relu2_bwd") && backward == Editor::kNone)
        backward = user;
      else
        other_reader = true;
    }
    if (other_reader) {
      refuse("relu2's input has another reader");
      continue;
    }
    if (backward != Editor::kNone) {
      const Value dh = edit.op(backward).inputs[0];
      upstream = edit.producer(dh, "linear_dx");
      if (upstream == Editor::kNone || edit.op(upstream).inputs[2] ||
          !edit.used_only_by(dh, {backward})) {
        refuse("the gradient of relu2 is not the product of one linear layer alone");
        continue;
      }
    }
    if (!edit.replace({product, r}, r, "linear_relu2", edit.op(product).inputs, {y}, {}, {},
                      report)) {
      refuse("relu2's result is read before it would be ready");
      continue;
    }
    if (backward == Editor::kNone) continue;
    const Op& dx = edit.op(upstream);
    const bool done =
        edit.replace({upstream, backward}, backward, "linear_dx_relu2",
                     {dx.inputs[0], dx.inputs[1], y}, edit.op(backward).outputs, {}, {}, report);
    TL_CHECK(done);  // its inputs are those of the op at its place
  }
  edit.commit();
  return report;
}

}  // namespace tightloop
