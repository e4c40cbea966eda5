#include "tightloop/ops/op_entry.h"

#include <algorithm>

namespace tightloop {

// Written by tl_add_op: the entries of every registered folder.
std::vector<std::span<const OpEntry>> registered_ops();

namespace {

struct Registry {
  std::vector<const OpEntry*> entries;
  OpTable table;

  static std::vector<const OpEntry*> collect() {
    std::vector<const OpEntry*> found;
    for (std::span<const OpEntry> entries : registered_ops())
      for (const OpEntry& entry : entries) found.push_back(&entry);
    std::sort(found.begin(), found.end(),
              [](const OpEntry* a, const OpEntry* b) { return a->def.name < b->def.name; });
    return found;
  }
  static std::vector<const OpDef*> defs(const std::vector<const OpEntry*>& entries) {
    std::vector<const OpDef*> found;
    for (const OpEntry* entry : entries) found.push_back(&entry->def);
    return found;
  }
  Registry() : entries(collect()), table(defs(entries)) {}
};

const Registry& registry() {
  static const Registry instance;
  return instance;
}

}  // namespace

const OpTable& op_table() {
  return registry().table;
}
std::vector<const OpEntry*> all_op_entries() {
  return registry().entries;
}

const OpEntry& op_entry(std::string_view name) {
  const auto& entries = registry().entries;
  const auto it =
      std::lower_bound(entries.begin(), entries.end(), name,
                       [](const OpEntry* e, std::string_view n) { return e->def.name < n; });
  if (it == entries.end() || (*it)->def.name != name)
    fail(ErrorKind::internal, "no operation is named '{}'", name);
  return **it;
}

void expect_shape(std::string_view op,
                  std::string_view operand,
                  const Type& got,
                  const Shape& want) {
  if (!(got.shape == want))
    fail(ErrorKind::shape, "{}: {} has shape {}, expected {}", op, operand, to_string(got.shape),
         to_string(want));
}

void expect_rank(std::string_view op, std::string_view operand, const Type& got, int rank) {
  if (got.shape.rank() != rank)
    fail(ErrorKind::shape, "{}: {} has shape {}, expected rank {}", op, operand,
         to_string(got.shape), rank);
}

void expect_float(std::string_view op, std::string_view operand, const Type& got) {
  if (!is_float(got.dtype))
    fail(ErrorKind::dtype, "{}: {} is {}, expected a float type", op, operand, name_of(got.dtype));
}

void expect_dtype(std::string_view op, std::string_view operand, const Type& got, DType want) {
  if (got.dtype != want)
    fail(ErrorKind::dtype, "{}: {} is {}, expected {}", op, operand, name_of(got.dtype),
         name_of(want));
}

}  // namespace tightloop
