#include "tightloop/ops/adamw/adamw.h"

#include "tightloop/ops/adamw/adamw_kernels.h"
#include "tightloop/ops/common/dispatch.h"

namespace tightloop {

void adamw(const Exec& exec, const Adamw& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(adamw_cuda(exec, args));
  exec.device == Device::ref ? adamw_ref(args) : adamw_cpu(args);
}

void adamw(Builder& b, Value g, Value hyper, Value p, Value m, Value v) {
  b.emit("adamw", {g, hyper}, {}, {p, m, v});
}

namespace {

// adamw: inputs (g, hyper) -> ; updates (p, m, v).
std::vector<Type> infer(const OpTypes& t, const Attrs&) {
  const Type& p = t.update(0);
  expect_dtype("adamw", "g", t.input(0), DType::f32);
  expect_shape("adamw", "g", t.input(0), p.shape);
  expect_dtype("adamw", "hyper", t.input(1), DType::f32);
  expect_shape("adamw", "hyper", t.input(1), {8});
  if (p.dtype != DType::bf16) expect_dtype("adamw", "p", p, DType::f32);
  expect_shape("adamw", "m", t.update(1), p.shape);
  expect_dtype("adamw", "m", t.update(1), p.dtype);
  expect_shape("adamw", "v", t.update(2), p.shape);
  expect_dtype("adamw", "v", t.update(2), p.dtype);
  return {};
}

Cost cost(const OpTypes& t, const Attrs&) {
  const int64_t state = 3 * t.update(0).bytes();
  return {t.input(0).bytes() + t.input(1).bytes() + state, state, 13 * t.update(0).elems()};
}

void run(const Exec& exec, const OpCall& c) {
  adamw(
      exec,
      {.g = c.input(0), .hyper = c.input(1), .p = c.update(0), .m = c.update(1), .v = c.update(2)});
}

const OpEntry kEntries[] = {{{.name = "adamw", .infer = infer, .cost = cost}, run}};

}  // namespace

std::span<const OpEntry> adamw_ops() {
  return kEntries;
}

}  // namespace tightloop
