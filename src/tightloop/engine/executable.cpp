#include "tightloop/engine/executable.h"

#include <atomic>
#include <chrono>
#include <cmath>

#include "tightloop/ops/op_entry.h"

namespace tightloop {

Workspace::Workspace(const std::vector<const Plan*>& plans) {
  int64_t scratch = 0;
  for (const Plan* plan : plans) {
    arena_bytes_ = std::max(arena_bytes_, plan->arena_bytes);
    scratch = std::max(scratch, plan->scratch_bytes);
  }
  const Device device = plans.empty() ? Device::cpu : plans[0]->device;
  block_ = MemoryBlock(arena_bytes_ + scratch, device);
}

namespace {
using Clock = std::chrono::steady_clock;

std::atomic<int64_t> g_programs_bound{0}, g_programs_captured{0}, g_graph_breaks{0};
std::atomic<int64_t> g_capture_ns{0};
}  // namespace

int64_t programs_bound() {
  return g_programs_bound.load();
}
int64_t programs_captured() {
  return g_programs_captured.load();
}
double capture_seconds() {
  return 1e-9 * static_cast<double>(g_capture_ns.load());
}
int64_t graph_breaks() {
  return g_graph_breaks.load();
}

std::string described(const Program& program, int op) {
  const Op& o = program.ops()[static_cast<size_t>(op)];
  const auto types = [&](const std::vector<Value>& values, std::string text) {
    for (Value v : values) {
      if (v) text += (text.empty() ? "" : ", ") + to_string(program.type(v));
    }
    return text;
  };
  return fmt::format("{} in '{}' (op {} of '{}'): {} -> {}", o.def->name, o.scope, op,
                     program.name(), types(o.inputs, ""), types(o.updates, types(o.outputs, "")));
}

Executable::Executable(Program program,
                       Plan plan,
                       const SlotStore& slots,
                       const Workspace& workspace)
    : program_(std::move(program)),
      plan_(std::move(plan)),
      slots_(&slots),
      workspace_(&workspace),
      exec_{plan_.device, workspace.scratch(),
            plan_.device == Device::cuda ? cuda::stream() : nullptr} {
  ++g_programs_bound;
  TL_CHECK(plan_.device == slots.device());
  calls_.reserve(program_.ops().size());
  for (const Op& op : program_.ops()) {
    Call call;
    call.run = op_entry(op.def->name).run;
    for (Value v : op.inputs) call.inputs.push_back(view(v));
    for (Value v : op.outputs) call.outputs.push_back(view(v));
    for (Value v : op.updates) call.updates.push_back(view(v));
    call.attrs = &op.attrs;
    calls_.push_back(std::move(call));
  }
}

TensorView Executable::view(Value v) const {
  if (!v) return {};
  const ValueInfo& info = program_.info(v);
  if (info.slot) return slots_->view(*info.slot);
  const int buffer = plan_.buffer_of[static_cast<size_t>(v.id)];
  TL_CHECK(buffer != Plan::kNoBuffer);
  return {workspace_->arena() + plan_.buffers[static_cast<size_t>(buffer)].offset,
          type_on(plan_.device, info.type)};
}

void Executable::run_calls(bool wait_each) const {
  size_t i = 0;
  try {
    for (; i < calls_.size(); ++i) {
      const Call& c = calls_[i];
      c.run(exec_, {c.inputs, c.outputs, c.updates, *c.attrs});
      if (wait_each) wait();
    }
  } catch (Error& e) {
    e.with_context(described(program_, static_cast<int>(i)));
    throw;
  }
}

void Executable::run() {
  const bool on_cuda = plan_.device == Device::cuda;
  const bool first = runs_++ == 0;
  if (cuda::debug_sync()) {
    if (on_cuda && !first) ++g_graph_breaks;
    return run_calls(true);
  }
  if (!on_cuda || first) return run_calls();
  if (graph_ == nullptr) {
    const Clock::time_point start = Clock::now();
    graph_ = std::make_unique<cuda::Graph>();
    graph_->capture([&] { run_calls(); });
    ++g_programs_captured;
    g_capture_ns += std::chrono::nanoseconds(Clock::now() - start).count();
  }
  graph_->launch();
}

void Executable::wait() const {
  if (plan_.device == Device::cuda) cuda::synchronize();
}

void Executable::run_profiled() {
  if (profile_.empty()) {
    for (size_t i = 0; i < calls_.size(); ++i) profile_.push_back({static_cast<int>(i), 0.0, 0});
  }
  if (plan_.device == Device::cuda) {
    // Between events on the stream, so that neither launches nor waits are in the times.
    while (marks_.size() < calls_.size() + 1) marks_.push_back(std::make_unique<cuda::Event>());
    marks_[0]->record();
    for (size_t i = 0; i < calls_.size(); ++i) {
      const Call& c = calls_[i];
      c.run(exec_, {c.inputs, c.outputs, c.updates, *c.attrs});
      marks_[i + 1]->record();
    }
    cuda::synchronize();
    for (size_t i = 0; i < calls_.size(); ++i) {
      profile_[i].seconds += cuda::Event::seconds(*marks_[i], *marks_[i + 1]);
      ++profile_[i].calls;
    }
    return;
  }
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& c = calls_[i];
    const auto start = Clock::now();
    c.run(exec_, {c.inputs, c.outputs, c.updates, *c.attrs});
    profile_[i].seconds += std::chrono::duration<double>(Clock::now() - start).count();
    ++profile_[i].calls;
  }
}

std::optional<NonFinite> Executable::run_checked() {
  std::vector<std::byte> fetched;
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& c = calls_[i];
    const Op& op = program_.ops()[i];
    c.run(exec_, {c.inputs, c.outputs, c.updates, op.attrs});
    const auto scan = [&](TensorView t, std::string_view what) -> std::optional<NonFinite> {
      if (t.empty() || !is_float(t.dtype())) return std::nullopt;
      if (plan_.device == Device::cuda) {
        fetched.resize(static_cast<size_t>(t.bytes()));
        cuda::copy_to_host(fetched.data(), t.data, t.bytes());
        t.data = fetched.data();
      }
      for (int64_t e = 0; e < t.elems(); ++e) {
        const double x = get_element(t, e);
        if (!std::isfinite(x))
          return NonFinite{static_cast<int>(i),
                           fmt::format("{} in '{}', {} {}, element {}: {}", op.def->name, op.scope,
                                       what, to_string(t.type), e, x)};
      }
      return std::nullopt;
    };
    for (size_t o = 0; o < c.outputs.size(); ++o) {
      if (auto found = scan(c.outputs[o], fmt::format("output {}", o))) return found;
    }
    for (size_t u = 0; u < c.updates.size(); ++u) {
      if (!op.updates[u]) continue;
      if (auto found = scan(c.updates[u], program_.info(op.updates[u]).name)) return found;
    }
  }
  return std::nullopt;
}

}  // namespace tightloop
