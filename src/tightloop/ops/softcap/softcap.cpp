#include "tightloop/ops/softcap/softcap.h"

#include <cmath>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/softcap/softcap_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at once

TL_CLONES void fwd_loop(const float* x, float* y, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) y[i] = cap * tanh_approx(x[i] * inverse);
}

TL_CLONES void bwd_loop(const float* dy, const float* y, float* dx, int64_t n, float cap) {
  const float inverse = 1.0f / cap;
  TL_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    const float u = y[i] * inverse;
    dx[i] = dy[i] * (1.0f - u * u);
  }
}

void fwd_ref(const double* x, double* y, int64_t n, double cap) {
  for (int64_t i = 0; i < n; ++i) y[i] = cap * std::tanh(x[i] / cap);
}

void bwd_ref(const double* dy, const double* y, double* dx, int64_t n, double cap) {
  for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] * (1.0 - (y[i] / cap) * (y[i] / cap));
}

void expect_cap(std::string_view op, const Attrs& attrs) {
  const double cap = attrs.number("cap");
  if (!(cap > 0.0)) fail(ErrorKind::usage, "{}: cap is {}, expected a positive number", op, cap);
}

std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  expect_float("softcap", "x", t.input(0));
  expect_cap("softcap", attrs);
  return {t.input(0)};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  const double cap = c.attrs.number("cap");
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(softcap_fwd_cuda(exec, c.inputs[0], c.outputs[0], cap));
  if (exec.device == Device::ref)
    return fwd_ref(c.inputs[0].as<double>(), c.outputs[0].as<double>(), n, cap);
  const float* x = c.inputs[0].as<float>();
  float* y = c.outputs[0].as<float>();
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    fwd_loop(x + begin, y + begin, end - begin, static_cast<float>(cap));
  });
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  return {t.input(0).bytes(), t.input(0).bytes(), 3 * t.input(0).elems()};
}

void vjp(VjpContext& ctx) {
  ctx.add_grad(0, ctx.builder().emit1("softcap_bwd", {ctx.output_grad(0), ctx.op().outputs[0]},
                                      {{"cap", ctx.op().attrs.number("cap")}}));
}

std::vector<Type> infer_bwd(const OpTypes& t, const Attrs& attrs) {
  expect_float("softcap_bwd", "dy", t.input(0));
  expect_dtype("softcap_bwd", "y", t.input(1), t.input(0).dtype);
  expect_shape("softcap_bwd", "y", t.input(1), t.input(0).shape);
  expect_cap("softcap_bwd", attrs);
  return {t.input(0)};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  const int64_t n = c.outputs[0].elems();
  const double cap = c.attrs.number("cap");
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(softcap_bwd_cuda(exec, c.inputs[0], c.inputs[1], c.outputs[0], cap));
  if (exec.device == Device::ref)
    return bwd_ref(c.inputs[0].as<double>(), c.inputs[1].as<double>(), c.outputs[0].as<double>(), n,
                   cap);
  const float *dy = c.inputs[0].as<float>(), *y = c.inputs[1].as<float>();
  float* dx = c.outputs[0].as<float>();
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    bwd_loop(dy + begin, y + begin, dx + begin, end - begin, static_cast<float>(cap));
  });
}

Cost cost_bwd(const OpTypes& t, const Attrs&) {
  return {2 * t.input(0).bytes(), t.input(0).bytes(), 4 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "softcap", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd, .inplace = {{0, 0}}},
     run_fwd},
    {{.name = "softcap_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 0}, {0, 1}}},
     run_bwd},
};

}  // namespace

std::span<const OpEntry> softcap_ops() {
  return kEntries;
}

Value softcap(Builder& b, Value x, double cap) {
  return b.emit1("softcap", {x}, {{"cap", cap}});
}

}  // namespace tightloop
