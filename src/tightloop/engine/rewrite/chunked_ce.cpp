#include <algorithm>

#include "tightloop/core/cuda_device.h"
#include "tightloop/engine/rewrite/editor.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace tightloop {
namespace {

/// The ops that `v` needs and that come after position `at`, in order; false when one of them needs
/// a value assigned by `barrier` ops.
bool collect_late(
    const Editor& edit, Value v, int at, const std::vector<int>& barrier, std::vector<int>& late) {
  const int p = edit.producer(v);
  if (p == Editor::kNone || p < at) return true;
  if (std::find(barrier.begin(), barrier.end(), p) != barrier.end()) return false;
  if (std::find(late.begin(), late.end(), p) != late.end()) return true;
  for (Value input : edit.op(p).inputs) {
    if (input && !collect_late(edit, input, at, barrier, late)) return false;
  }
  if (!edit.op(p).updates.empty()) return false;
  late.push_back(p);
  return true;
}

/// Clusters of two blocks that share the tiles of our own products, which do this op in bf16.
int64_t clusters_for(DType logit) {
  const bool ours = logit == DType::bf16 && cuda::device_count() > 0 && !cuda::generic_arch() &&
                    cuda::device_info().compute_major == 9;
  return ours ? cuda::device_info().multiprocessors / 2 : 0;
}

}  // namespace

// linear -> (softcap ->)? cross_entropy, with or without the whole backward down to the gradients
// of the hidden state and of the head weight.
RewriteReport rewrite_chunked_ce(Program& program,
                                 const OpTable& ops,
                                 const RewriteOptions& options) {
  RewriteReport report{"chunked-ce", {}, {}};
  Editor edit(program, ops);
  for (int ce = 0; ce < edit.size(); ++ce) {
    if (!edit.is(ce, "cross_entropy") || edit.removed(ce)) continue;
    const Op entropy = edit.op(ce);
    const auto refuse = [&](std::string_view why) {
      report.not_applied.push_back(fmt::format("{}: {}", entropy.scope, why));
    };

    const Value capped = entropy.inputs[0];
    const int cap = edit.producer(capped, "softcap");
    const Value logits = cap == Editor::kNone ? capped : edit.op(cap).inputs[0];
    int product = edit.producer(logits, "linear");
    if (product == Editor::kNone) product = edit.producer(logits, "linear_f32");
    if (product == Editor::kNone) {
      refuse("the logits do not come from a linear layer");
      continue;
    }

    int ce_bwd = Editor::kNone, cap_bwd = Editor::kNone, dx = Editor::kNone, dw = Editor::kNone;
    bool other_reader = false;
    for (int user : edit.users(capped)) {
      if (user == ce) continue;
      if (edit.is(user, "cross_entropy_bwd") && ce_bwd == Editor::kNone)
        ce_bwd = user;
      else if (edit.is(user, "softcap_bwd") && cap_bwd == Editor::kNone)
        cap_bwd = user;
      else
        other_reader = true;
    }
    if (cap != Editor::kNone && edit.only_user(logits) != cap) other_reader = true;
    if (other_reader) {
      refuse("the logits have another reader");
      continue;
    }

    Value dlogits = ce_bwd == Editor::kNone ? Value{} : edit.op(ce_bwd).outputs[0];
    if (dlogits && cap != Editor::kNone) {
      if (cap_bwd == Editor::kNone || edit.only_user(dlogits) != cap_bwd) {
        refuse("the gradient of the logits has another reader");
        continue;
      }
      dlogits = edit.op(cap_bwd).outputs[0];
    }
    if (dlogits) {
      for (int user : edit.users(dlogits)) {
        if (edit.is(user, "linear_dx") && !edit.op(user).inputs[2] && dx == Editor::kNone)
          dx = user;
        else if (edit.is(user, "linear_dw") && dw == Editor::kNone)
          dw = user;
        else
          other_reader = true;
      }
      if (other_reader || dx == Editor::kNone) {
        refuse("the gradient of the logits is not read by the head's own gradients alone");
        continue;
      }
    }

    const Value x = edit.op(product).inputs[0], w = edit.op(product).inputs[1];
    // What a device may keep them in: without a gradient f32 always.
    const DType logit = dlogits ? program.type(x).dtype : DType::f32;
    Attrs attrs{{"vocab", entropy.attrs.integer("vocab")},
                {"ignore_index", entropy.attrs.integer("ignore_index")},
                {"cap", cap == Editor::kNone ? 0.0 : edit.op(cap).attrs.number("cap")},
                {"chunk_rows",
                 linear_cross_entropy_chunk_rows(
                     program.type(x).shape.rows(), program.type(w).shape[0], size_of(logit),
                     options.ce_chunk_bytes, {program.type(x).shape.cols(), clusters_for(logit)})}};
    const Value weights = entropy.inputs.size() > 2 ? entropy.inputs[2] : Value{};
    std::vector<int> old{product, ce};
    if (cap != Editor::kNone) old.push_back(cap);
    if (!dlogits) {
      edit.replace(old, ce, "linear_cross_entropy", {x, w, entropy.inputs[1], weights},
                   entropy.outputs, {}, attrs, report);
      continue;
    }

    // The fused op makes loss and gradient in one sweep, so the gradient of the loss must be known
    // at the loss's place; it may depend on scalars, not on the loss.
    const Value dloss = edit.op(ce_bwd).inputs[0];
    std::vector<int> late;
    if (!collect_late(edit, dloss, ce, old, late)) {
      refuse("the gradient of the loss depends on the loss");
      continue;
    }
    // dw moves up to the loss: nothing in between may write the same gradient slot.
    if (dw != Editor::kNone) {
      const std::vector<int>& writers = edit.users(edit.op(dw).updates[0]);
      if (std::any_of(writers.begin(), writers.end(), [&](int i) { return i > ce && i < dw; })) {
        refuse("the head's gradient slot is written between the loss and the head's gradient");
        continue;
      }
    }
    for (int i : {ce_bwd, cap_bwd, dx, dw}) {
      if (i != Editor::kNone) old.push_back(i);
    }
    std::vector<Value> updates(1);
    attrs.set("accumulate", false);
    if (dw != Editor::kNone) {
      updates[0] = edit.op(dw).updates[0];
      attrs.set("accumulate", edit.op(dw).attrs.flag("accumulate"));
    }
    edit.hoist(late, ce);
    const bool done = edit.replace(
        old, ce, "linear_cross_entropy_grad", {x, w, entropy.inputs[1], dloss, weights},
        {entropy.outputs[0], entropy.outputs[1], edit.op(dx).outputs[0]}, updates, attrs, report);
    TL_CHECK(done);
  }
  edit.commit();
  return report;
}

}  // namespace tightloop
