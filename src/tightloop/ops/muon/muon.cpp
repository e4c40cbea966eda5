#include "tightloop/ops/muon/muon.h"

#include <algorithm>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {

void muon_momentum(const Exec& exec, const MuonMomentum& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(muon_momentum_cuda(exec, args));
  exec.device == Device::ref ? muon_momentum_ref(args) : muon_momentum_cpu(args);
}

void muon_update(const Exec& exec, const MuonUpdate& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(muon_update_cuda(exec, args));
  if (exec.device == Device::ref) return muon_update_ref(args);
  muon_update_cpu(args, exec.scratch.data());
}

Shape muon_second_moment_shape(const Shape& parameter) {
  if (parameter.rank() != 2)
    fail(ErrorKind::shape, "muon: the parameter has shape {}, expected a matrix",
         to_string(parameter));
  return parameter[0] >= parameter[1] ? Shape{parameter[0], 1} : Shape{1, parameter[1]};
}

Value muon_momentum(Builder& b, Value g, Value hyper, Value momentum) {
  return b.emit1("muon_momentum", {g, hyper}, {}, {momentum});
}

void muon_update(Builder& b, Value x, Value hyper, Value p, Value second_moment) {
  b.emit("muon_update", {x, hyper}, {}, {p, second_moment});
}

namespace {

void expect_f32(std::string_view op, std::string_view operand, const Type& got, const Shape& want) {
  expect_dtype(op, operand, got, DType::f32);
  expect_shape(op, operand, got, want);
}

// muon_momentum: inputs (g, hyper) -> (u); updates (M).
std::vector<Type> infer_momentum(const OpTypes& t, const Attrs&) {
  const Type& g = t.input(0);
  expect_rank("muon_momentum", "g", g, 2);
  expect_dtype("muon_momentum", "g", g, DType::f32);
  expect_f32("muon_momentum", "hyper", t.input(1), {8});
  expect_f32("muon_momentum", "M", t.update(0), g.shape);
  return {g};
}

Cost cost_momentum(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes();
  return {2 * bytes + t.input(1).bytes(), 2 * bytes, 5 * t.input(0).elems()};
}

void run_momentum(const Exec& exec, const OpCall& c) {
  muon_momentum(exec,
                {.g = c.input(0), .hyper = c.input(1), .momentum = c.update(0), .u = c.outputs[0]});
}

// muon_update: inputs (x, hyper) -> ; updates (p, S).
std::vector<Type> infer_update(const OpTypes& t, const Attrs&) {
  const Type& x = t.input(0);
  expect_rank("muon_update", "x", x, 2);
  expect_dtype("muon_update", "x", x, DType::f32);
  expect_f32("muon_update", "hyper", t.input(1), {8});
  expect_f32("muon_update", "p", t.update(0), x.shape);
  expect_f32("muon_update", "S", t.update(1), muon_second_moment_shape(x.shape));
  return {};
}

Cost cost_update(const OpTypes& t, const Attrs&) {
  const int64_t x = t.input(0).bytes(), state = t.update(0).bytes() + t.update(1).bytes();
  return {x + t.input(1).bytes() + state, state, 7 * t.input(0).elems()};
}

void run_update(const Exec& exec, const OpCall& c) {
  muon_update(
      exec, {.x = c.input(0), .hyper = c.input(1), .p = c.update(0), .second_moment = c.update(1)});
}

int64_t scratch_update(const OpTypes& t, const Attrs&) {
  return muon_update_scratch(t.update(0).shape);
}

int64_t scratch_update_cuda(const OpTypes& t, const Attrs&) {
  const Shape& p = t.update(0).shape;
  const int64_t groups = std::max(p[0], p[1]), slices = p[0] >= p[1] ? 1 : kMuonSlices;
  return (slices * groups + 2 * muon_shares(groups)) * int64_t{sizeof(double)} +
         groups * int64_t{sizeof(float)};
}

const OpEntry kEntries[] = {
    {{.name = "muon_momentum", .infer = infer_momentum, .cost = cost_momentum, .inplace = {{0, 0}}},
     run_momentum},
    {{.name = "muon_update", .infer = infer_update, .cost = cost_update},
     run_update,
     scratch_update,
     scratch_update_cuda},
};

}  // namespace

std::span<const OpEntry> muon_ops() {
  return kEntries;
}

}  // namespace tightloop
