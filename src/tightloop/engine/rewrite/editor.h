#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/engine/rewrite/rewrite.h"

namespace tightloop {

/// Matches and replaces groups of ops of one Program. Positions are those of the Program as it was
/// when the Editor was made; replacements take effect at commit(). An op belongs to one replacement
/// only.
class Editor {
 public:
  Editor(Program& program, const OpTable& ops);

  int size() const { return static_cast<int>(program_.ops().size()); }
  const Op& op(int i) const { return program_.ops()[static_cast<size_t>(i)]; }
  bool is(int i, std::string_view name) const { return op(i).def->name == name; }
  bool removed(int i) const { return removed_[static_cast<size_t>(i)]; }
  const Program& program() const { return program_; }

  static constexpr int kNone = -1;
  /// The op that assigns v; kNone for slots and empty values, or when it belongs to a replacement.
  int producer(Value v) const;
  /// The op that assigns v when it is called `name`, else kNone.
  int producer(Value v, std::string_view name) const;
  /// Readers of v that are not part of a replacement yet.
  const std::vector<int>& users(Value v) const { return users_[static_cast<size_t>(v.id)]; }
  /// The only reader of v, or kNone when there are none or several.
  int only_user(Value v) const;
  int only_user(Value v, std::string_view name) const;
  /// Whether every reader of v is in `ops`.
  bool used_only_by(Value v, std::initializer_list<int> ops) const;

  /// Replaces the ops `old` by one op at position `at` (one of `old`). `outputs` are existing
  /// values, in the order of the new op's outputs; an empty Value makes a new one. The new op
  /// counts as backward when one of `old` does. Returns whether it was done: not, and nothing
  /// changed, when an input would not be ready at `at`, or an output is read before.
  bool replace(std::vector<int> old,
               int at,
               std::string_view name,
               std::vector<Value> inputs,
               std::vector<Value> outputs,
               std::vector<Value> updates,
               Attrs attrs,
               RewriteReport& report);
  /// Moves ops (in their order) to just before position `at`.
  void hoist(const std::vector<int>& ops, int at);

  void commit();

 private:
  struct Placed {
    int key;   // position; a hoisted op sorts before the op that was there
    int rank;  // 0 hoisted, 1 original or replacement
    Op op;
  };

  Program& program_;
  const OpTable& ops_;
  std::vector<int> producer_;            // by value id
  std::vector<std::vector<int>> users_;  // by value id
  std::vector<bool> removed_;            // by op
  std::vector<Placed> placed_;
};

}  // namespace tightloop
