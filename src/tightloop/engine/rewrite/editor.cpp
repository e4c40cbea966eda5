#include "tightloop/engine/rewrite/editor.h"

#include <algorithm>

namespace tightloop {

Editor::Editor(Program& program, const OpTable& ops)
    : program_(program),
      ops_(ops),
      producer_(static_cast<size_t>(program.value_count()), kNone),
      users_(static_cast<size_t>(program.value_count())),
      removed_(program.ops().size(), false) {
  for (int i = 0; i < size(); ++i) {
    for (Value v : op(i).outputs) producer_[static_cast<size_t>(v.id)] = i;
    for (const std::vector<Value>* list : {&op(i).inputs, &op(i).updates}) {
      for (Value v : *list) {
        if (!v) continue;
        std::vector<int>& users = users_[static_cast<size_t>(v.id)];
        if (users.empty() || users.back() != i) users.push_back(i);
      }
    }
  }
}

int Editor::producer(Value v) const {
  if (!v) return kNone;
  const int i = producer_[static_cast<size_t>(v.id)];
  return i == kNone || removed(i) ? kNone : i;
}

int Editor::producer(Value v, std::string_view name) const {
  const int i = producer(v);
  return i != kNone && is(i, name) ? i : kNone;
}

int Editor::only_user(Value v) const {
  return users(v).size() == 1 && !removed(users(v)[0]) ? users(v)[0] : kNone;
}

int Editor::only_user(Value v, std::string_view name) const {
  const int i = only_user(v);
  return i != kNone && is(i, name) ? i : kNone;
}

bool Editor::used_only_by(Value v, std::initializer_list<int> ops) const {
  return std::all_of(users(v).begin(), users(v).end(), [&](int user) {
    return std::find(ops.begin(), ops.end(), user) != ops.end();
  });
}

bool Editor::replace(std::vector<int> old,
                     int at,
                     std::string_view name,
                     std::vector<Value> inputs,
                     std::vector<Value> outputs,
                     std::vector<Value> updates,
                     Attrs attrs,
                     RewriteReport& report) {
  const auto is_old = [&](int i) { return std::find(old.begin(), old.end(), i) != old.end(); };
  TL_CHECK(is_old(at));
  for (Value v : inputs) {
    if (v && producer_[static_cast<size_t>(v.id)] > at) return false;
  }
  for (Value v : outputs) {
    if (!v) continue;
    for (int user : users(v)) {
      if (user < at && !is_old(user)) return false;
    }
  }

  RewriteSite site;
  std::sort(old.begin(), old.end());
  for (int i : old) {
    site.before += cost_of(*op(i).def, program_.types_of(op(i)), op(i).attrs);
    site.what += (site.what.empty() ? "" : " + ") + std::string(op(i).def->name);
    removed_[static_cast<size_t>(i)] = true;
  }
  site.what += " -> " + std::string(name);
  site.scope = op(at).scope;
  const bool any_backward =
      std::any_of(old.begin(), old.end(), [&](int i) { return op(i).scope.ends_with('\''); });
  if (any_backward && !site.scope.ends_with('\'')) site.scope += '\'';

  Op fused;
  fused.def = &ops_.get(name);
  fused.inputs = std::move(inputs);
  fused.updates = std::move(updates);
  fused.attrs = std::move(attrs);
  fused.scope = site.scope;
  const std::vector<Type> types = fused.def->infer(program_.types_of(fused), fused.attrs);
  TL_CHECK(types.size() == outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i)
    fused.outputs.push_back(
        outputs[i] ? outputs[i]
                   : program_.add_temp(types[i], fmt::format("{}.{}", site.scope, name)));
  producer_.resize(static_cast<size_t>(program_.value_count()), kNone);
  for (Value v : fused.outputs) producer_[static_cast<size_t>(v.id)] = at;
  users_.resize(static_cast<size_t>(program_.value_count()));
  site.after = cost_of(*fused.def, program_.types_of(fused), fused.attrs);
  report.applied.push_back(std::move(site));
  placed_.push_back({at, 1, std::move(fused)});
  return true;
}

void Editor::hoist(const std::vector<int>& ops, int at) {
  for (int i : ops) {
    removed_[static_cast<size_t>(i)] = true;
    for (Value v : op(i).outputs) producer_[static_cast<size_t>(v.id)] = at;
    placed_.push_back({at, 0, op(i)});
  }
}

void Editor::commit() {
  if (placed_.empty()) return;
  std::vector<Placed> all = std::move(placed_);
  for (int i = 0; i < size(); ++i) {
    if (!removed(i)) all.push_back({i, 1, op(i)});
  }
  std::stable_sort(all.begin(), all.end(), [](const Placed& a, const Placed& b) {
    return a.key != b.key ? a.key < b.key : a.rank < b.rank;
  });
  std::vector<Op> ops;
  for (Placed& p : all) ops.push_back(std::move(p.op));
  program_.ops() = std::move(ops);
}

}  // namespace tightloop
