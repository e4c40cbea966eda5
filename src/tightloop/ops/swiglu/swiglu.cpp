#include "tightloop/ops/swiglu/swiglu.h"

#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/swiglu/swiglu_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at once

TL_CLONES void fwd_loop(const float* gate, const float* up, float* y, int64_t n) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * sigmoid_approx(gate[i]) * up[i];
}

TL_CLONES void bwd_loop(
    const float* dy, const float* gate, const float* up, float* dgate, float* dup, int64_t n) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i], u = up[i], d = dy[i];
    const float s = sigmoid_approx(g);
    dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
    dup[i] = d * g * s;
  }
}

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

void fwd_ref(const double* gate, const double* up, double* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

void bwd_ref(
    const double* dy, const double* gate, const double* up, double* dgate, double* dup, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double g = gate[i], u = up[i], d = dy[i], s = sigmoid(g);
    dgate[i] = d * u * s * (1.0 + g * (1.0 - s));
    dup[i] = d * g * s;
  }
}

std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  expect_float("swiglu", "gate", t.input(0));
  expect_dtype("swiglu", "up", t.input(1), t.input(0).dtype);
  expect_shape("swiglu", "up", t.input(1), t.input(0).shape);
  return {t.input(0)};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(swiglu_fwd_cuda(exec, c.inputs[0], c.inputs[1], c.outputs[0]));
  if (exec.device == Device::ref)
    return fwd_ref(c.inputs[0].as<double>(), c.inputs[1].as<double>(), c.outputs[0].as<double>(),
                   n);
  const float *gate = c.inputs[0].as<float>(), *up = c.inputs[1].as<float>();
  float* y = c.outputs[0].as<float>();
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    fwd_loop(gate + begin, up + begin, y + begin, end - begin);
  });
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  return {2 * t.input(0).bytes(), t.input(0).bytes(), 5 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  const std::vector<Value> grads =
      ctx.builder().emit("swiglu_bwd", {ctx.output_grad(0), op.inputs[0], op.inputs[1]});
  for (size_t i : {size_t{0}, size_t{1}}) {
    if (ctx.needs_grad(i)) ctx.add_grad(i, grads[i]);
  }
}

std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  const Type& dy = t.input(0);
  expect_float("swiglu_bwd", "dy", dy);
  expect_dtype("swiglu_bwd", "gate", t.input(1), dy.dtype);
  expect_dtype("swiglu_bwd", "up", t.input(2), dy.dtype);
  expect_shape("swiglu_bwd", "gate", t.input(1), dy.shape);
  expect_shape("swiglu_bwd", "up", t.input(2), dy.shape);
  return {dy, dy};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(
        swiglu_bwd_cuda(exec, c.inputs[0], c.inputs[1], c.inputs[2], c.outputs[0], c.outputs[1]));
  if (exec.device == Device::ref)
    return bwd_ref(c.inputs[0].as<double>(), c.inputs[1].as<double>(), c.inputs[2].as<double>(),
                   c.outputs[0].as<double>(), c.outputs[1].as<double>(), n);
  const float *dy = c.inputs[0].as<float>(), *gate = c.inputs[1].as<float>();
  const float* up = c.inputs[2].as<float>();
  float *dgate = c.outputs[0].as<float>(), *dup = c.outputs[1].as<float>();
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    bwd_loop(dy + begin, gate + begin, up + begin, dgate + begin, dup + begin, end - begin);
  });
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  return {3 * t.input(0).bytes(), 2 * t.input(0).bytes(), 11 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "swiglu",
      .infer = infer_fwd,
      .vjp = vjp,
      .cost = cost_fwd,
      .inplace = {{0, 0}, {0, 1}}},
     run_fwd},
    {{.name = "swiglu_bwd",
      .infer = infer_bwd,
      .cost = cost_bwd,
      .inplace = {{0, 0}, {0, 1}, {1, 0}, {1, 2}}},
     run_bwd},
};

}  // namespace

std::span<const OpEntry> swiglu_ops() {
  return kEntries;
}

Value swiglu(Builder& b, Value gate, Value up) {
  return b.emit1("swiglu", {gate, up});
}

}  // namespace tightloop
