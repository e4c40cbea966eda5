#include "tightloop/ops/relu2/relu2.h"

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/relu2/relu2_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at once

TL_CLONES void fwd_loop(const float* x, float* y, int64_t n) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float r = x[i] > 0.0f ? x[i] : 0.0f;
    y[i] = r * r;
  }
}

TL_CLONES void bwd_loop(const float* dy, const float* x, float* dx, int64_t n) {
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float r = x[i] > 0.0f ? x[i] : 0.0f;
    dx[i] = 2.0f * r * dy[i];
  }
}

void fwd_ref(const double* x, double* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0.0 ? x[i] * x[i] : 0.0;
}

void bwd_ref(const double* dy, const double* x, double* dx, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dx[i] = x[i] > 0.0 ? 2.0 * x[i] * dy[i] : 0.0;
}

std::vector<Type> infer_fwd(const OpTypes& t, const Attrs&) {
  expect_float("relu2", "x", t.input(0));
  return {t.input(0)};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(relu2_fwd_cuda(exec, c.inputs[0], c.outputs[0]));
  if (exec.device == Device::ref)
    return fwd_ref(c.inputs[0].as<double>(), c.outputs[0].as<double>(), n);
  const float* x = c.inputs[0].as<float>();
  float* y = c.outputs[0].as<float>();
  parallel_for(n, kGrain,
               [&](int64_t begin, int64_t end) { fwd_loop(x + begin, y + begin, end - begin); });
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  return {t.input(0).bytes(), t.input(0).bytes(), 2 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  ctx.add_grad(0, ctx.builder().emit1("relu2_bwd", {ctx.output_grad(0), ctx.op().inputs[0]}));
}

std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  expect_float("relu2_bwd", "dy", t.input(0));
  expect_dtype("relu2_bwd", "x", t.input(1), t.input(0).dtype);
  expect_shape("relu2_bwd", "x", t.input(1), t.input(0).shape);
  return {t.input(0)};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(relu2_bwd_cuda(exec, c.inputs[0], c.inputs[1], c.outputs[0]));
  if (exec.device == Device::ref)
    return bwd_ref(c.inputs[0].as<double>(), c.inputs[1].as<double>(), c.outputs[0].as<double>(),
                   n);
  const float *dy = c.inputs[0].as<float>(), *x = c.inputs[1].as<float>();
  float* dx = c.outputs[0].as<float>();
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    bwd_loop(dy + begin, x + begin, dx + begin, end - begin);
  });
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  return {2 * t.input(0).bytes(), t.input(0).bytes(), 3 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "relu2", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd, .inplace = {{0, 0}}},
     run_fwd},
    {{.name = "relu2_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}, {0, 1}}},
     run_bwd},
};

}  // namespace

std::span<const OpEntry> relu2_ops() {
  return kEntries;
}

Value relu2(Builder& b, Value x) {
  return b.emit1("relu2", {x});
}

}  // namespace tightloop
