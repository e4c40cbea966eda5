#include "tightloop/ops/attention/attention.h"

#include <algorithm>

#include "tightloop/ops/attention/attention_cudnn.h"
#include "tightloop/ops/attention/attention_kernels.h"
#include "tightloop/ops/attention/attention_sm90.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void attention_fwd(const Exec& exec, const AttentionFwd& args) {
  if (exec.device == Device::cuda) {
    if (!cudnn_attention_fwd(exec, args)) TL_CUDA_KERNEL(attention_fwd_cuda(exec, args));
    return;
  }
  exec.device == Device::ref
      ? attention_fwd_ref(args)
      : attention_fwd_cpu(args, attention_detail::native_kernels(), exec.scratch);
}

void attention_bwd(const Exec& exec, const AttentionBwd& args) {
  if (exec.device == Device::cuda) {
    TL_CUDA_KERNEL(attention_bwd_cuda(exec, args));
    return;
  }
  exec.device == Device::ref
      ? attention_bwd_ref(args)
      : attention_bwd_cpu(args, attention_detail::native_kernels(), exec.scratch);
}

std::vector<Value> attention(
    Builder& b, Value q, Value k, Value v, int64_t window, double softmax_scale) {
  return b.emit("attention", {q, k, v}, {{"window", window}, {"softmax_scale", softmax_scale}});
}

int64_t attention_visible_pairs(int64_t tokens, int64_t window) {
  const int64_t reach = std::min(window, tokens - 1);
  return tokens * (reach + 1) - reach * (reach + 1) / 2;
}

std::string_view attention_kernel_name(
    const Type& q, const Type& k, int64_t window, double softmax_scale, bool backward) {
  if (backward && attention_bwd_sm90_takes(q, k)) return "own, Hopper";
  return cudnn_attention_scratch_bytes({q, k, window, softmax_scale, backward}) ? "cudnn" : "own";
}

std::string attention_library() {
  const int64_t version = cudnn_attention_version();
  return version == 0 ? "own" : fmt::format("cuDNN {}", version);
}

namespace {

void expect_operands(
    std::string_view op, const Type& q, const Type& k, const Type& v, const Attrs& attrs) {
  expect_rank(op, "q", q, 4);
  expect_rank(op, "k", k, 4);
  expect_float(op, "q", q);
  expect_dtype(op, "k", k, q.dtype);
  expect_dtype(op, "v", v, q.dtype);
  const int64_t heads = q.shape[2], kv_heads = k.shape[2];
  expect_shape(op, "k", k, {q.shape[0], q.shape[1], kv_heads, q.shape[3]});
  expect_shape(op, "v", v, k.shape);
  if (q.elems() == 0 || k.elems() == 0)
    fail(ErrorKind::shape, "{}: q has shape {}, k {}: no dimension may be 0", op,
         to_string(q.shape), to_string(k.shape));
  if (heads % kv_heads != 0)
    fail(ErrorKind::shape, "{}: {} key/value heads, expected a divisor of {} query heads", op,
         kv_heads, heads);
  if (attrs.integer("window") < 0)
    fail(ErrorKind::usage, "{}: window is {}, expected 0 or more", op, attrs.integer("window"));
  if (!(attrs.number("softmax_scale") > 0.0))
    fail(ErrorKind::usage, "{}: softmax_scale is {}, expected a positive number", op,
         attrs.number("softmax_scale"));
}

/// FLOPs of one product over all visible pairs: two per pair and head dimension.
int64_t product_flops(const Shape& q, const Attrs& attrs) {
  return 2 * q[0] * q[2] * q[3] * attention_visible_pairs(q[1], attrs.integer("window"));
}

// attention: inputs (q, k, v) -> outputs (o, lse). Attributes window, softmax_scale.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  const Type& q = t.input(0);
  expect_operands("attention", q, t.input(1), t.input(2), attrs);
  return {q, {statistics_dtype(q.dtype), {q.shape[0], q.shape[2], q.shape[1]}}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  attention_fwd(exec, {.q = c.input(0),
                       .k = c.input(1),
                       .v = c.input(2),
                       .o = c.outputs[0],
                       .lse = c.outputs[1],
                       .window = c.attrs.integer("window"),
                       .softmax_scale = c.attrs.number("softmax_scale")});
}

int64_t scratch_fwd(const OpTypes& t, const Attrs&) {
  return attention_fwd_scratch_bytes(t.input(0).shape, t.input(1).shape,
                                     attention_detail::native_kernels());
}

int64_t cudnn_scratch(const Type& q, const Type& k, const Attrs& attrs, bool backward) {
  return cudnn_attention_scratch_bytes(
             {q, k, attrs.integer("window"), attrs.number("softmax_scale"), backward})
      .value_or(0);
}

int64_t scratch_fwd_cuda(const OpTypes& t, const Attrs& attrs) {
  return cudnn_scratch(t.input(0), t.input(1), attrs, false);
}

// Two products: scores and output.
Cost cost_fwd(const OpTypes& t, const Attrs& attrs) {
  return {t.input(0).bytes() + t.input(1).bytes() + t.input(2).bytes(),
          t.outputs[0].bytes() + t.outputs[1].bytes(), 2 * product_flops(t.input(0).shape, attrs)};
}

void vjp(VjpContext& ctx) {
  const Op& op = ctx.op();
  if (ctx.output_grad(1))
    fail(ErrorKind::unsupported, "attention: the gradient with respect to lse is not implemented");
  const std::vector<Value> grads = ctx.builder().emit(
      "attention_bwd",
      {ctx.output_grad(0), op.inputs[0], op.inputs[1], op.inputs[2], op.outputs[0], op.outputs[1]},
      op.attrs);
  for (size_t i = 0; i < 3; ++i) {
    if (ctx.needs_grad(i)) ctx.add_grad(i, grads[i]);
  }
}

// attention_bwd: inputs (do, q, k, v, o, lse) -> outputs (dq, dk, dv). Attributes as attention.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs& attrs) {
  const Type& q = t.input(1);
  expect_operands("attention_bwd", q, t.input(2), t.input(3), attrs);
  expect_shape("attention_bwd", "do", t.input(0), q.shape);
  expect_dtype("attention_bwd", "do", t.input(0), q.dtype);
  expect_shape("attention_bwd", "o", t.input(4), q.shape);
  expect_dtype("attention_bwd", "o", t.input(4), q.dtype);
  expect_shape("attention_bwd", "lse", t.input(5), {q.shape[0], q.shape[2], q.shape[1]});
  expect_dtype("attention_bwd", "lse", t.input(5), statistics_dtype(q.dtype));
  return {q, t.input(2), t.input(3)};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  attention_bwd(exec, {.grad_o = c.input(0),
                       .q = c.input(1),
                       .k = c.input(2),
                       .v = c.input(3),
                       .o = c.input(4),
                       .lse = c.input(5),
                       .dq = c.outputs[0],
                       .dk = c.outputs[1],
                       .dv = c.outputs[2],
                       .window = c.attrs.integer("window"),
                       .softmax_scale = c.attrs.number("softmax_scale")});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  return attention_bwd_scratch_bytes(t.input(1).shape, t.input(2).shape,
                                     attention_detail::native_kernels());
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs& attrs) {
  if (attention_bwd_sm90_takes(t.input(1), t.input(2)))
    return attention_bwd_sm90_scratch_bytes(t.input(1));
  const int64_t own = t.input(1).shape.rows() * int64_t{sizeof(float)};
  return std::max(own, cudnn_scratch(t.input(1), t.input(2), attrs, true));
}

// Five products: scores again, do·v, dq, dk, dv.
Cost cost_bwd(const OpTypes& t, const Attrs& attrs) {
  const int64_t q_bytes = t.input(1).bytes(), k_bytes = t.input(2).bytes();
  return {3 * q_bytes + 2 * k_bytes + t.input(5).bytes(), q_bytes + 2 * k_bytes,
          5 * product_flops(t.input(1).shape, attrs)};
}

const OpEntry kEntries[] = {
    {{.name = "attention", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd},
     run_fwd,
     scratch_fwd,
     scratch_fwd_cuda},
    {{.name = "attention_bwd", .infer = infer_bwd, .cost = cost_bwd},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
};

}  // namespace

std::span<const OpEntry> attention_ops() {
  return kEntries;
}

}  // namespace tightloop
