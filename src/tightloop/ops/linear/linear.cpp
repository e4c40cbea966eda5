#include "tightloop/ops/linear/linear.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

GemmInput gemm_input(const ConstTensorView& t) {
  return {.data = t.data, .dtype = t.dtype(), .ld = t.shape().cols()};
}

/// One product on any device. `e` is the epilogue's operand, empty for none.
void run_gemm(const Exec& exec,
              GemmForm form,
              int64_t M,
              int64_t N,
              int64_t K,
              const ConstTensorView& a,
              const ConstTensorView& b,
              const TensorView& c,
              bool accumulate = false,
              GemmEpilogue epilogue = GemmEpilogue::none,
              const ConstTensorView& e = {}) {
  if (exec.device == Device::ref) {
    gemm_ref({.form = form,
              .M = M,
              .N = N,
              .K = K,
              .a = a.as<double>(),
              .lda = a.shape().cols(),
              .b = b.as<double>(),
              .ldb = b.shape().cols(),
              .c = c.as<double>(),
              .ldc = c.shape().cols(),
              .accumulate = accumulate,
              .epilogue = epilogue,
              .e = e.empty() ? nullptr : e.as<double>(),
              .lde = e.empty() ? 0 : e.shape().cols()});
    return;
  }
  const Gemm g{.form = form,
               .M = M,
               .N = N,
               .K = K,
               .a = gemm_input(a),
               .b = gemm_input(b),
               .c = {.data = c.data, .dtype = c.dtype(), .ld = c.shape().cols()},
               .accumulate = accumulate,
               .epilogue = epilogue,
               .e = e.empty() ? GemmInput{} : gemm_input(e)};
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(gemm_cuda(exec, g));
  gemm(g, exec.scratch);
}

int64_t scratch(
    GemmForm form, int64_t M, int64_t N, int64_t K, const Type& a, const Type& b, int64_t c_cols) {
  const Gemm g{.form = form,
               .M = M,
               .N = N,
               .K = K,
               .a = {.data = nullptr, .dtype = a.dtype, .ld = a.shape.cols()},
               .b = {.data = nullptr, .dtype = b.dtype, .ld = b.shape.cols()},
               .c = {.data = nullptr, .dtype = DType::f32, .ld = c_cols}};
  return static_cast<int64_t>(gemm_scratch_bytes(g));
}

Cost gemm_cost(const OpTypes& t, int64_t M, int64_t N, int64_t K) {
  Cost cost;
  for (const auto& in : t.inputs) cost.bytes_read += in ? in->bytes() : 0;
  for (const Type& out : t.outputs) cost.bytes_written += out.bytes();
  cost.flops = 2 * M * N * K;
  return cost;
}

// linear, linear_f32, linear_relu2: (x (..., K), w (N, K)) -> y (..., N).
std::vector<Type> infer_linear(const OpTypes& t, const Attrs&) {
  const Type &x = t.input(0), &w = t.input(1);
  expect_rank("linear", "w", w, 2);
  expect_float("linear", "x", x);
  expect_float("linear", "w", w);
  if (x.shape.rank() == 0 || x.shape.cols() != w.shape[1])
    fail(ErrorKind::shape, "linear: x has shape {}, w has {}: the last dimensions must be equal",
         to_string(x.shape), to_string(w.shape));
  return {{x.dtype, x.shape.with_cols(w.shape[0])}};
}

std::vector<Type> infer_linear_f32(const OpTypes& t, const Attrs& attrs) {
  return {{DType::f32, infer_linear(t, attrs)[0].shape}};
}

void run_linear(const Exec& exec, const OpCall& c) {
  const Shape& w = c.inputs[1].shape();
  run_gemm(exec, GemmForm::nt, c.inputs[0].shape().rows(), w[0], w[1], c.inputs[0], c.inputs[1],
           c.outputs[0]);
}

void run_linear_relu2(const Exec& exec, const OpCall& c) {
  const Shape& w = c.inputs[1].shape();
  run_gemm(exec, GemmForm::nt, c.inputs[0].shape().rows(), w[0], w[1], c.inputs[0], c.inputs[1],
           c.outputs[0], false, GemmEpilogue::relu2);
}

int64_t scratch_linear(const OpTypes& t, const Attrs&) {
  const Shape& w = t.input(1).shape;
  return scratch(GemmForm::nt, t.input(0).shape.rows(), w[0], w[1], t.input(0), t.input(1), w[0]);
}

Cost cost_linear(const OpTypes& t, const Attrs&) {
  const Shape& w = t.input(1).shape;
  return gemm_cost(t, t.input(0).shape.rows(), w[0], w[1]);
}

void vjp_linear(VjpContext& ctx) {
  const Op& op = ctx.op();
  Value dy = ctx.output_grad(0);
  const DType of_x = ctx.builder().type(op.inputs[0]).dtype;
  if (ctx.builder().type(dy).dtype != of_x)
    dy = ctx.builder().emit1("cast", {dy}, {{"dtype", static_cast<int64_t>(of_x)}});
  if (ctx.needs_grad(1)) {
    const auto dw = ctx.parameter_grad(1);
    ctx.builder().emit("linear_dw", {dy, op.inputs[0]}, {{"accumulate", dw.accumulate}}, {dw.slot});
  }
  if (!ctx.needs_grad(0)) return;
  if (ctx.is_parameter(0)) {
    ctx.add_grad(0, ctx.builder().emit1("linear_dx", {dy, op.inputs[1], {}}));
  } else {
    ctx.replace_grad(0, ctx.builder().emit1("linear_dx", {dy, op.inputs[1], ctx.grad_so_far(0)}));
  }
}

// linear_dx: (dy (..., N), w (N, K), dx_in?) -> dx (..., K); linear_dx_relu2: (dy, w, y (..., K)).
std::vector<Type> infer_dx(const OpTypes& t, const Attrs&) {
  const Type &dy = t.input(0), &w = t.input(1);
  expect_rank("linear_dx", "w", w, 2);
  if (dy.shape.cols() != w.shape[0])
    fail(ErrorKind::shape, "linear_dx: dy has shape {}, w has {}: dy's last must be w's first",
         to_string(dy.shape), to_string(w.shape));
  const Type dx{dy.dtype, dy.shape.with_cols(w.shape[1])};
  if (t.has_input(2)) expect_shape("linear_dx", "dx_in or y", t.input(2), dx.shape);
  return {dx};
}

void run_dx(const Exec& exec, const OpCall& c) {
  const Shape& w = c.inputs[1].shape();
  const ConstTensorView dx_in = c.input(2);
  const bool in_place = !dx_in.empty() && dx_in.data == c.outputs[0].data;
  const bool adds = !dx_in.empty() && !in_place;
  run_gemm(exec, GemmForm::nn, c.inputs[0].shape().rows(), w[1], w[0], c.inputs[0], c.inputs[1],
           c.outputs[0], in_place, adds ? GemmEpilogue::add : GemmEpilogue::none,
           adds ? dx_in : ConstTensorView{});
}

void run_dx_relu2(const Exec& exec, const OpCall& c) {
  const Shape& w = c.inputs[1].shape();
  run_gemm(exec, GemmForm::nn, c.inputs[0].shape().rows(), w[1], w[0], c.inputs[0], c.inputs[1],
           c.outputs[0], false, GemmEpilogue::relu2_bwd, c.inputs[2]);
}

int64_t scratch_dx(const OpTypes& t, const Attrs&) {
  const Shape& w = t.input(1).shape;
  return scratch(GemmForm::nn, t.input(0).shape.rows(), w[1], w[0], t.input(0), t.input(1), w[1]);
}

Cost cost_dx(const OpTypes& t, const Attrs&) {
  const Shape& w = t.input(1).shape;
  return gemm_cost(t, t.input(0).shape.rows(), w[1], w[0]);
}

// linear_dw: (dy (..., N), x (..., K)), updates dw (N, K). Attribute accumulate.
std::vector<Type> infer_dw(const OpTypes& t, const Attrs&) {
  const Type &dy = t.input(0), &x = t.input(1);
  if (dy.shape.rows() != x.shape.rows())
    fail(ErrorKind::shape, "linear_dw: dy has shape {}, x has {}: the rows must be equal",
         to_string(dy.shape), to_string(x.shape));
  expect_shape("linear_dw", "dw", t.update(0), {dy.shape.cols(), x.shape.cols()});
  return {};
}

void run_dw(const Exec& exec, const OpCall& c) {
  const Shape& dw = c.updates[0].shape();
  run_gemm(exec, GemmForm::tn, dw[0], dw[1], c.inputs[0].shape().rows(), c.inputs[0], c.inputs[1],
           c.updates[0], c.attrs.flag("accumulate"));
}

int64_t scratch_dw(const OpTypes& t, const Attrs&) {
  const Shape& dw = t.update(0).shape;
  return scratch(GemmForm::tn, dw[0], dw[1], t.input(0).shape.rows(), t.input(0), t.input(1),
                 dw[1]);
}

Cost cost_dw(const OpTypes& t, const Attrs& attrs) {
  const Shape& dw = t.update(0).shape;
  Cost cost = gemm_cost(t, dw[0], dw[1], t.input(0).shape.rows());
  cost.bytes_written += t.update(0).bytes();
  if (attrs.flag("accumulate")) cost.bytes_read += t.update(0).bytes();
  return cost;
}

const OpEntry kEntries[] = {
    {{.name = "linear", .infer = infer_linear, .vjp = vjp_linear, .cost = cost_linear},
     run_linear,
     scratch_linear},
    {{.name = "linear_f32", .infer = infer_linear_f32, .vjp = vjp_linear, .cost = cost_linear},
     run_linear,
     scratch_linear},
    {{.name = "linear_relu2", .infer = infer_linear, .cost = cost_linear},
     run_linear_relu2,
     scratch_linear},
    {{.name = "linear_dx", .infer = infer_dx, .cost = cost_dx, .inplace = {{0, 2}}},
     run_dx,
     scratch_dx},
    // Not in place of y: the product waits in dx while it is summed, and y is needed at the end.
    {{.name = "linear_dx_relu2", .infer = infer_dx, .cost = cost_dx}, run_dx_relu2, scratch_dx},
    {{.name = "linear_dw", .infer = infer_dw, .cost = cost_dw}, run_dw, scratch_dw},
};

}  // namespace

std::span<const OpEntry> linear_ops() {
  return kEntries;
}

Value linear(Builder& b, Value x, Value w) {
  return b.emit1("linear", {x, w});
}
Value linear_f32(Builder& b, Value x, Value w) {
  return b.type(x).dtype == DType::f32 ? linear(b, x, w) : b.emit1("linear_f32", {x, w});
}
Value linear_relu2(Builder& b, Value x, Value w) {
  return b.emit1("linear_relu2", {x, w});
}

}  // namespace tightloop
