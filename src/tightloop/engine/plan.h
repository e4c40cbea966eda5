#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tightloop/core/exec.h"
#include "tightloop/program/program.h"

namespace tightloop {

/// Where every temporary of a Program lives: one arena, offsets fixed before anything runs.
struct Plan {
  Device device = Device::cpu;

  /// One piece of the arena, shared by values that are the same memory (reshapes, in-place
  /// results).
  struct Buffer {
    int64_t offset = 0;
    int64_t bytes = 0;
    int first = 0;  // op that writes it first
    int last = 0;   // op that uses it last
    Value value;    // the value that opened it
  };
  std::vector<Buffer> buffers;
  std::vector<int> buffer_of;  // by value id; kNoBuffer for slots
  static constexpr int kNoBuffer = -1;

  int64_t arena_bytes = 0;          // all buffers, after packing
  int64_t scratch_bytes = 0;        // the largest an op asks for
  std::vector<int64_t> live_bytes;  // by op: buffers alive while it runs, its scratch included
  int peak_op = 0;                  // where live_bytes is largest

  int64_t peak_live_bytes() const {
    return live_bytes.empty() ? 0 : live_bytes[static_cast<size_t>(peak_op)];
  }
};

/// Lifetimes by first and last use; a result takes over the buffer of an input that dies in the op
/// when the op allows it; buffers are packed largest first, each at the lowest offset where it
/// overlaps no buffer alive at the same time.
Plan make_plan(const Program& program, Device device);

/// Calls of make_plan() in this process: a run that plans again after its start is counted here.
int64_t plans_made();

/// One line of the memory table: purpose and bytes.
struct MemoryLine {
  std::string purpose;
  int64_t bytes = 0;
};

/// Memory by purpose of a set of Programs that share a slot table and, one after another, one
/// arena.
std::vector<MemoryLine> memory_table(const SlotTable& slots,
                                     Device device,
                                     const std::vector<const Plan*>& plans);

}  // namespace tightloop
