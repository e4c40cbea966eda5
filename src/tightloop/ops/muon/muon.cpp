#include "tightloop/ops/muon/muon.h"

#include <algorithm>
#include <utility>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/muon/muon_kernels.h"

namespace tightloop {

void muon_momentum(const Exec& exec, const MuonMomentum& args) {
  TL_CHECK(args.g.size() == args.u.size() && args.momentum.size() == args.u.size());
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(muon_momentum_cuda(exec, args));
  for (size_t i = 0; i < args.u.size(); ++i) {
    const MuonMomentumMatrix one{args.g[i], args.hyper, args.momentum[i], args.u[i]};
    exec.device == Device::ref ? muon_momentum_ref(one) : muon_momentum_cpu(one);
  }
}

void muon_update(const Exec& exec, const MuonUpdate& args) {
  TL_CHECK(args.x.size() == args.p.size() && args.second_moment.size() == args.p.size());
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(muon_update_cuda(exec, args));
  for (size_t i = 0; i < args.p.size(); ++i) {
    const MuonUpdateMatrix one{args.x[i], args.hyper, args.p[i], args.second_moment[i]};
    if (exec.device == Device::ref)
      muon_update_ref(one);
    else
      muon_update_cpu(one, exec.scratch.data());
  }
}

Shape muon_second_moment_shape(const Shape& parameter) {
  if (parameter.rank() != 2)
    fail(ErrorKind::shape, "muon: the parameter has shape {}, expected a matrix",
         to_string(parameter));
  return parameter[0] >= parameter[1] ? Shape{parameter[0], 1} : Shape{1, parameter[1]};
}

std::vector<Value> muon_momentum(Builder& b,
                                 std::vector<Value> g,
                                 Value hyper,
                                 std::vector<Value> momentum) {
  g.push_back(hyper);
  return b.emit("muon_momentum", std::move(g), {}, std::move(momentum));
}

void muon_update(Builder& b,
                 std::vector<Value> x,
                 Value hyper,
                 std::vector<Value> p,
                 const std::vector<Value>& second_moment) {
  x.push_back(hyper);
  p.insert(p.end(), second_moment.begin(), second_moment.end());
  b.emit("muon_update", std::move(x), {}, std::move(p));
}

namespace {

/// Matrices of a call whose inputs are one of each and hyper, and whose updates are `kinds` of
/// each.
size_t matrices_of(std::string_view op, const OpTypes& t, size_t kinds) {
  const size_t count = t.inputs.empty() ? 0 : t.inputs.size() - 1;
  if (count < 1 || count > kMuonStack || t.updates.size() != kinds * count)
    fail(ErrorKind::shape, "{}: {} matrices and {} updates, expected 1 to {} and {} for each", op,
         count, t.updates.size(), kMuonStack, kinds);
  return count;
}

void expect_f32(std::string_view op, std::string_view operand, const Type& got, const Shape& want) {
  expect_dtype(op, operand, got, DType::f32);
  expect_shape(op, operand, got, want);
}

// muon_momentum: inputs (g, ..., hyper) -> (u, ...); updates (M, ...).
std::vector<Type> infer_momentum(const OpTypes& t, const Attrs&) {
  const size_t count = matrices_of("muon_momentum", t, 1);
  const Type& g = t.input(0);
  expect_rank("muon_momentum", "g", g, 2);
  expect_f32("muon_momentum", "hyper", t.input(count), {8});
  for (size_t i = 0; i < count; ++i) {
    expect_f32("muon_momentum", "g", t.input(i), g.shape);
    expect_f32("muon_momentum", "M", t.update(i), g.shape);
  }
  return std::vector<Type>(count, g);
}

Cost cost_momentum(const OpTypes& t, const Attrs&) {
  const auto count = static_cast<int64_t>(t.updates.size());
  const int64_t bytes = count * t.input(0).bytes();
  return {2 * bytes + t.inputs.back()->bytes(), 2 * bytes, 5 * count * t.input(0).elems()};
}

void run_momentum(const Exec& exec, const OpCall& c) {
  const size_t count = c.updates.size();
  muon_momentum(
      exec,
      {.g = c.inputs.first(count), .hyper = c.input(count), .momentum = c.updates, .u = c.outputs});
}

/// Every u may take the place of its g.
std::vector<std::pair<int, int>> each_in_place() {
  std::vector<std::pair<int, int>> pairs;
  for (int i = 0; i < static_cast<int>(kMuonStack); ++i) pairs.emplace_back(i, i);
  return pairs;
}

// muon_update: inputs (x, ..., hyper) -> ; updates (p, ..., S, ...).
std::vector<Type> infer_update(const OpTypes& t, const Attrs&) {
  const size_t count = matrices_of("muon_update", t, 2);
  const Type& x = t.input(0);
  expect_rank("muon_update", "x", x, 2);
  expect_f32("muon_update", "hyper", t.input(count), {8});
  for (size_t i = 0; i < count; ++i) {
    expect_f32("muon_update", "x", t.input(i), x.shape);
    expect_f32("muon_update", "p", t.update(i), x.shape);
    expect_f32("muon_update", "S", t.update(count + i), muon_second_moment_shape(x.shape));
  }
  return {};
}

Cost cost_update(const OpTypes& t, const Attrs&) {
  const auto count = static_cast<int64_t>(t.inputs.size()) - 1;
  const int64_t x = count * t.input(0).bytes();
  const int64_t state = x + count * t.updates.back()->bytes();
  return {x + t.inputs.back()->bytes() + state, state, 7 * count * t.input(0).elems()};
}

void run_update(const Exec& exec, const OpCall& c) {
  const size_t count = c.inputs.size() - 1;
  muon_update(exec, {.x = c.inputs.first(count),
                     .hyper = c.input(count),
                     .p = c.updates.first(count),
                     .second_moment = c.updates.subspan(count)});
}

int64_t scratch_update(const OpTypes& t, const Attrs&) {
  return muon_update_scratch(t.update(0).shape);
}

int64_t scratch_update_cuda(const OpTypes& t, const Attrs&) {
  const Shape& p = t.update(0).shape;
  const int64_t groups = std::max(p[0], p[1]), slices = p[0] >= p[1] ? 1 : kMuonSlices;
  const int64_t count = static_cast<int64_t>(t.inputs.size()) - 1;
  return count * ((slices * groups + 2 * muon_shares(groups)) * int64_t{sizeof(double)} +
                  groups * int64_t{sizeof(float)});
}

const OpEntry kEntries[] = {
    {{.name = "muon_momentum",
      .infer = infer_momentum,
      .cost = cost_momentum,
      .inplace = each_in_place()},
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
