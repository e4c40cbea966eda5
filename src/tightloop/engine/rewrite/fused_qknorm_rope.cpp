#include "tightloop/engine/rewrite/editor.h"

namespace tightloop {

// Forward:  rope(x) -> rmsnorm without weight           =>  qknorm_rope
// Backward: rmsnorm_bwd without weight -> inverse rope   =>  qknorm_rope_bwd
RewriteReport rewrite_fused_qknorm_rope(Program& program,
                                        const OpTable& ops,
                                        const RewriteOptions&) {
  RewriteReport report{"fused-qk-norm", {}, {}};
  Editor edit(program, ops);
  for (int i = 0; i < edit.size(); ++i) {
    if (!edit.is(i, "rope")) continue;
    const Op& rope = edit.op(i);
    if (!rope.attrs.flag("inverse")) {
      const int n = edit.only_user(rope.outputs[0], "rmsnorm");
      if (n == Editor::kNone || edit.op(n).inputs[1]) {
        report.not_applied.push_back(rope.scope +
                                     ": no weight-free RMSNorm is the only reader of the rotation");
        continue;
      }
      const Op& norm = edit.op(n);
      edit.replace({i, n}, n, "qknorm_rope", rope.inputs, norm.outputs, {},
                   {{"eps", norm.attrs.number("eps")}, {"scale", norm.attrs.number("scale")}},
                   report);
    } else {
      const int n = edit.producer(rope.inputs[0], "rmsnorm_bwd");
      if (n == Editor::kNone || edit.op(n).inputs[3] || !edit.used_only_by(rope.inputs[0], {i})) {
        report.not_applied.push_back(
            rope.scope + ": the gradient does not come from a weight-free RMSNorm alone");
        continue;
      }
      const Op& norm = edit.op(n);
      std::vector<Value> inputs{norm.inputs[0], norm.inputs[1], norm.inputs[2], rope.inputs[1]};
      inputs.push_back(rope.inputs.size() > 2 ? rope.inputs[2] : Value{});
      edit.replace({n, i}, i, "qknorm_rope_bwd", inputs, rope.outputs, {},
                   {{"scale", norm.attrs.number("scale")}}, report);
    }
  }
  edit.commit();
  return report;
}

}  // namespace tightloop
