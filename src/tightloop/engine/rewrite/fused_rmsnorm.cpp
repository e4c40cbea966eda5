#include "tightloop/engine/rewrite/editor.h"

namespace tightloop {
namespace {

Attrs scaled_attrs(const Op& scaled) {
  return {{"ca", scaled.attrs.number("ca")},
          {"cb", scaled.attrs.number("cb")},
          {"ia", scaled.attrs.integer("ia")},
          {"ib", scaled.attrs.integer("ib")}};
}

Attrs no_scale() {
  return {{"ca", 1.0}, {"cb", 1.0}, {"ia", int64_t{0}}, {"ib", int64_t{0}}};
}

/// (add ->)? (scaled_add ->)? rmsnorm: at least one of the two.
void match_forward(Editor& edit, int n, RewriteReport& report) {
  const Op norm = edit.op(n);
  if (norm.inputs[1]) {
    report.not_applied.push_back(norm.scope + ": the norm has a weight");
    return;
  }
  const Value x = norm.inputs[0];
  const int scaled = edit.producer(x, "scaled_add");
  const Value before = scaled == Editor::kNone ? x : edit.op(scaled).inputs[0];
  int sum = edit.producer(before, "add");
  // A scaled add whose two inputs are one value cannot take the sum apart.
  if (scaled != Editor::kNone && edit.op(scaled).inputs[0] == edit.op(scaled).inputs[1])
    sum = Editor::kNone;
  if (scaled == Editor::kNone && sum == Editor::kNone) {
    report.not_applied.push_back(norm.scope + ": the norm's input is not a residual or scaled add");
    return;
  }
  const bool has_add = sum != Editor::kNone, has_scale = scaled != Editor::kNone;
  std::vector<int> old;
  std::vector<Value> inputs(6), outputs;
  Attrs attrs = has_scale ? scaled_attrs(edit.op(scaled)) : no_scale();
  inputs[0] = before;
  if (has_add) {
    old.push_back(sum);
    inputs[0] = edit.op(sum).inputs[0];
    inputs[1] = edit.op(sum).inputs[1];
  }
  if (has_scale) {
    old.push_back(scaled);
    const Op& s = edit.op(scaled);
    inputs[2] = s.inputs[1];
    inputs[3] = s.inputs[2];
    inputs[4] = s.inputs[3];
    if (has_add) outputs.push_back(before);
  }
  outputs.push_back(x);
  outputs.push_back(norm.outputs[0]);
  outputs.push_back(norm.outputs[1]);
  old.push_back(n);
  attrs.set("eps", norm.attrs.number("eps"));
  attrs.set("scale", norm.attrs.number("scale"));
  attrs.set("has_add", has_add);
  attrs.set("has_more", false);
  attrs.set("has_scale", has_scale);
  attrs.set("stores_t", true);
  // The sum is often read again before the norm's place only by ops that are replaced too.
  if (!edit.replace(old, n, "residual_rmsnorm", inputs, outputs, {}, attrs, report))
    report.not_applied.push_back(norm.scope + ": the sum is read before the norm");
}

/// rmsnorm_bwd -> add (the gradient of the residual path) (-> scaled_add_bwd (-> add))?
void match_backward(Editor& edit, int n, RewriteReport& report) {
  const Op norm = edit.op(n);
  if (norm.inputs[3]) {
    report.not_applied.push_back(norm.scope + ": the norm has a weight");
    return;
  }
  std::vector<int> old{n};
  std::vector<Value> inputs(9), outputs, updates(2);
  inputs[0] = norm.inputs[0];  // dh
  inputs[1] = norm.inputs[1];  // h
  inputs[2] = norm.inputs[2];  // rstd
  Value gradient = norm.outputs[0];
  int at = n;

  const int sum = edit.only_user(gradient, "add");
  if (sum != Editor::kNone) {
    const Op& add = edit.op(sum);
    const Value other = add.inputs[0] == gradient ? add.inputs[1] : add.inputs[0];
    if (!(other == gradient)) {
      inputs[3] = other;
      gradient = add.outputs[0];
      old.push_back(sum);
      at = sum;
    }
  }
  Attrs attrs = no_scale();
  const int scaled = edit.only_user(gradient, "scaled_add_bwd");
  const bool has_scale = scaled != Editor::kNone && edit.op(scaled).inputs[0] == gradient;
  if (!has_scale && !inputs[3]) {
    report.not_applied.push_back(norm.scope + ": the gradient meets no residual or scaled add");
    return;
  }
  if (has_scale) {
    const Op& s = edit.op(scaled);
    inputs[4] = s.inputs[1];
    inputs[5] = s.inputs[2];
    inputs[6] = s.inputs[3];
    inputs[7] = s.inputs[4];
    updates = s.updates;
    updates.resize(2);
    attrs = scaled_attrs(s);
    old.push_back(scaled);
    at = scaled;
    outputs = {s.outputs[0], s.outputs[1]};
  } else {
    outputs = {gradient};
  }
  attrs.set("scale", norm.attrs.number("scale"));
  attrs.set("has_scale", has_scale);
  // The gradient of z that came from further up is added in the same pass, where there is one by
  // then.
  const int dz_sum = has_scale ? edit.only_user(outputs[1], "add") : Editor::kNone;
  if (dz_sum != Editor::kNone) {
    const Op& add = edit.op(dz_sum);
    const Value other = add.inputs[0] == outputs[1] ? add.inputs[1] : add.inputs[0];
    if (!(other == outputs[0]) && !(other == outputs[1])) {
      std::vector<Value> with_sum = inputs;
      with_sum[8] = other;
      std::vector<int> ops = old;
      ops.push_back(dz_sum);
      if (edit.replace(ops, at, "residual_rmsnorm_bwd", with_sum, {outputs[0], add.outputs[0]},
                       updates, attrs, report))
        return;
    }
  }
  if (!edit.replace(old, at, "residual_rmsnorm_bwd", inputs, outputs, updates, attrs, report))
    report.not_applied.push_back(norm.scope + ": a gradient is read before the fused op's place");
}

/// In bf16 a stored sum is a rounded one. Where the sum x + y of one op is read by the next one
/// alone, that one takes x and y: as many bytes, one rounding less in the residual stream.
void skip_stored_sums(Program& program, const OpTable& ops) {
  Editor edit(program, ops);
  RewriteReport same_bytes;
  for (int i = 0; i < edit.size(); ++i) {
    if (edit.removed(i) || !edit.is(i, "residual_rmsnorm")) continue;
    Op next = edit.op(i);
    if (!next.attrs.flag("has_add") || program.type(next.inputs[0]).dtype == DType::f32) continue;
    const int at = edit.producer(next.inputs[0], "residual_rmsnorm");
    if (at == Editor::kNone || edit.only_user(next.inputs[0]) != i) continue;
    Op first = edit.op(at);
    if (!first.attrs.flag("has_add") || first.attrs.flag("has_scale") ||
        !(first.outputs[0] == next.inputs[0]))
      continue;
    next.inputs[5] = next.inputs[1];
    next.inputs[0] = first.inputs[0];
    next.inputs[1] = first.inputs[1];
    next.attrs.set("has_more", true);
    first.outputs.erase(first.outputs.begin());
    first.attrs.set("stores_t", false);
    const bool done =
        edit.replace({at}, at, first.def->name, first.inputs, first.outputs, {}, first.attrs,
                     same_bytes) &&
        edit.replace({i}, i, next.def->name, next.inputs, next.outputs, {}, next.attrs, same_bytes);
    TL_CHECK(done);  // what an op reads is ready where its reader's other terms are
  }
  edit.commit();
}

}  // namespace

RewriteReport rewrite_fused_rmsnorm(Program& program, const OpTable& ops, const RewriteOptions&) {
  RewriteReport report{"fused-rmsnorm", {}, {}};
  Editor edit(program, ops);
  for (int i = 0; i < edit.size(); ++i) {
    if (edit.removed(i)) continue;
    if (edit.is(i, "rmsnorm")) match_forward(edit, i, report);
    if (edit.is(i, "rmsnorm_bwd")) match_backward(edit, i, report);
  }
  edit.commit();
  skip_stored_sums(program, ops);
  return report;
}

}  // namespace tightloop
