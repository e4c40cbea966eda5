#include "tightloop/engine/plan.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "tightloop/engine/memory.h"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/op_entry.h"

namespace tightloop {
namespace {

std::atomic<int64_t> g_plans_made{0};

/// Gives every temporary a buffer; aliases and in-place results join the buffer of their input.
void assign_buffers(const Program& program, Plan& plan) {
  const std::vector<Op>& ops = program.ops();
  std::vector<int> last_use(static_cast<size_t>(program.value_count()), -1);
  for (size_t i = 0; i < ops.size(); ++i) {
    for (Value v : ops[i].outputs) last_use[static_cast<size_t>(v.id)] = static_cast<int>(i);
    for (Value v : ops[i].inputs) {
      if (v) last_use[static_cast<size_t>(v.id)] = static_cast<int>(i);
    }
  }

  plan.buffer_of.assign(static_cast<size_t>(program.value_count()), Plan::kNoBuffer);
  const auto buffer = [&](Value v) { return plan.buffer_of[static_cast<size_t>(v.id)]; };
  const auto is_temp = [&](Value v) { return v && !program.info(v).slot; };

  // A buffer's last use so far is known only once all its aliases are: walk aliases first.
  std::vector<int> final_use = last_use;
  for (size_t i = ops.size(); i-- > 0;) {
    const Op& op = ops[i];
    if (!op.def->alias || !is_temp(op.inputs[0])) continue;
    int& of_input = final_use[static_cast<size_t>(op.inputs[0].id)];
    of_input = std::max(of_input, final_use[static_cast<size_t>(op.outputs[0].id)]);
  }

  for (size_t i = 0; i < ops.size(); ++i) {
    const Op& op = ops[i];
    const int now = static_cast<int>(i);
    std::vector<bool> taken(op.inputs.size(), false);
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      const Value out = op.outputs[o];
      const int64_t bytes = type_on(plan.device, program.type(out)).bytes();
      int joined = Plan::kNoBuffer;
      if (op.def->alias) {
        if (is_temp(op.inputs[0])) joined = buffer(op.inputs[0]);
      } else {
        for (const auto& [output, input] : op.def->inplace) {
          const auto in = static_cast<size_t>(input);
          if (output != static_cast<int>(o) || in >= op.inputs.size() || taken[in]) continue;
          const Value v = op.inputs[in];
          if (!is_temp(v) || std::count(op.inputs.begin(), op.inputs.end(), v) != 1) continue;
          const Plan::Buffer& b = plan.buffers[static_cast<size_t>(buffer(v))];
          if (b.last != now || b.bytes != align_up(bytes)) continue;
          // Another input of this op may be an alias of the same buffer.
          const bool shared = std::any_of(op.inputs.begin(), op.inputs.end(), [&](Value other) {
            return is_temp(other) && !(other == v) && buffer(other) == buffer(v);
          });
          if (shared) continue;
          joined = buffer(v);
          taken[in] = true;
          break;
        }
      }
      const int until = std::max(now, final_use[static_cast<size_t>(out.id)]);
      if (joined == Plan::kNoBuffer) {
        joined = static_cast<int>(plan.buffers.size());
        plan.buffers.push_back({0, align_up(bytes), now, until, out});
      } else {
        int& last = plan.buffers[static_cast<size_t>(joined)].last;
        last = std::max(last, until);
      }
      plan.buffer_of[static_cast<size_t>(out.id)] = joined;
    }
  }
}

/// Largest first; each at the lowest free offset among the placed buffers alive at the same time.
void pack(Plan& plan) {
  std::vector<int> order(plan.buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    const Plan::Buffer &x = plan.buffers[static_cast<size_t>(a)],
                       &y = plan.buffers[static_cast<size_t>(b)];
    if (x.bytes != y.bytes) return x.bytes > y.bytes;
    return x.first < y.first;
  });
  std::vector<const Plan::Buffer*> placed;  // sorted by offset
  for (int index : order) {
    Plan::Buffer& buffer = plan.buffers[static_cast<size_t>(index)];
    int64_t offset = 0;
    for (const Plan::Buffer* other : placed) {
      if (other->last < buffer.first || other->first > buffer.last) continue;
      if (other->offset >= offset + buffer.bytes) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    buffer.offset = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + buffer.bytes);
    const auto at = std::upper_bound(
        placed.begin(), placed.end(), &buffer,
        [](const Plan::Buffer* a, const Plan::Buffer* b) { return a->offset < b->offset; });
    placed.insert(at, &buffer);
  }
}

}  // namespace

int64_t plans_made() {
  return g_plans_made.load();
}

Plan make_plan(const Program& program, Device device) {
  ++g_plans_made;
  Plan plan;
  plan.device = device;
  assign_buffers(program, plan);
  pack(plan);

  const std::vector<Op>& ops = program.ops();
  plan.live_bytes.assign(ops.size(), 0);
  std::vector<int64_t> change(ops.size() + 1, 0);
  for (const Plan::Buffer& b : plan.buffers) {
    change[static_cast<size_t>(b.first)] += b.bytes;
    change[static_cast<size_t>(b.last) + 1] -= b.bytes;
  }
  int64_t live = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    const int64_t scratch = align_up(
        op_entry(ops[i].def->name).scratch_bytes(device, program.types_of(ops[i]), ops[i].attrs));
    plan.scratch_bytes = std::max(plan.scratch_bytes, scratch);
    live += change[i];
    plan.live_bytes[i] = live + scratch;
    if (plan.live_bytes[i] > plan.live_bytes[static_cast<size_t>(plan.peak_op)])
      plan.peak_op = static_cast<int>(i);
  }
  return plan;
}

std::vector<MemoryLine> memory_table(const SlotTable& slots,
                                     Device device,
                                     const std::vector<const Plan*>& plans) {
  std::vector<MemoryLine> lines;
  const auto line = [&](std::string_view purpose) -> int64_t& {
    for (MemoryLine& l : lines) {
      if (l.purpose == purpose) return l.bytes;
    }
    lines.push_back({std::string(purpose), 0});
    return lines.back().bytes;
  };
  for (const Slot& slot : slots.all()) {
    const int64_t bytes = align_up(type_on(device, slot.type).bytes());
    // On cuda an input is uploaded to two places in turn (SlotStore).
    const bool staged = device == Device::cuda && slot.role == SlotRole::input;
    line(name_of(slot.role)) += staged ? 3 * bytes : bytes;
  }
  int64_t arena = 0, scratch = 0;
  for (const Plan* plan : plans) {
    arena = std::max(arena, plan->arena_bytes);
    scratch = std::max(scratch, plan->scratch_bytes);
  }
  line("activations") += arena;
  line("scratch") += scratch;
  if (device == Device::cuda) line("cuBLASLt") += gemm_cuda_workspace_bytes();
  return lines;
}

}  // namespace tightloop
