#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <algorithm>

#include "tightloop/ops/common/ce_checks.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void linear_cross_entropy_fwd(const Exec& exec, const LinearCrossEntropyFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(linear_cross_entropy_fwd_cuda(exec, args));
  check_targets("linear_cross_entropy", args.targets, args.vocab, args.ignore_index);
  if (exec.device == Device::ref) return linear_cross_entropy_fwd_ref(args);
  linear_cross_entropy_fwd_cpu(args, exec.scratch);
}

void linear_cross_entropy_grad(const Exec& exec, const LinearCrossEntropyGrad& args) {
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(linear_cross_entropy_grad_cuda(exec, args));
  check_targets("linear_cross_entropy_grad", args.targets, args.vocab, args.ignore_index);
  if (exec.device == Device::ref) return linear_cross_entropy_grad_ref(args);
  linear_cross_entropy_grad_cpu(args, exec.scratch);
}

LinearCrossEntropyCudaScratch::LinearCrossEntropyCudaScratch(
    LinearCrossEntropyPass pass, const Type& x, const Type& w, double cap, int64_t chunk_rows)
    : chunk(std::min(chunk_rows, x.shape.rows())),
      by_offset(x.dtype == DType::bf16 && cap > 0.0 && cap <= kMostOffsetCap &&
                w.shape[0] < int64_t{1} << 30),  // columns are counted in 32 bits
      logits(pass == LinearCrossEntropyPass::forward ? DType::f32 : x.dtype),
      ld((w.shape[0] + 7) / 8 * 8) {
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const bool factors = by_offset && pass == LinearCrossEntropyPass::gradient;
  logits_bytes = aligned(chunk * ld * size_of(logits));
  factor_bytes = factors ? aligned(chunk * size_of(DType::f32)) : 0;
  x_bytes = factors ? aligned(chunk * w.shape[1] * size_of(x.dtype)) : 0;
  w_bytes = w.dtype == x.dtype ? 0 : aligned(w.elems() * size_of(x.dtype));
  sums_bytes = by_offset ? chunk * columns_of_sums(w.shape[0]) * size_of(DType::f32) : 0;
}

int64_t linear_cross_entropy_chunk_rows(int64_t rows,
                                        int64_t padded_vocab,
                                        int64_t logit_bytes,
                                        int64_t budget_bytes,
                                        const LinearCrossEntropyTurns& turns) {
  const int64_t row_bytes = std::max<int64_t>(1, padded_vocab) * logit_bytes;
  const int64_t most = std::max<int64_t>(8, budget_bytes / row_bytes / 8 * 8);
  if (rows <= most) return std::max<int64_t>(1, rows);
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  constexpr int64_t kTile = 256;
  if (turns.clusters == 0 || most < kTile) return parts(parts(rows, parts(rows, most)), 8) * 8;
  const auto turns_of = [&](int64_t chunk) {
    return parts(parts(chunk, kTile) * parts(turns.width, kTile), turns.clusters);
  };
  int64_t best = 0, best_cost = 0;
  for (int64_t chunk = most / kTile * kTile; chunk > 0; chunk -= kTile) {
    const int64_t whole = rows / chunk, rest = rows % chunk;
    const int64_t cost = 5 * (whole * turns_of(chunk) + turns_of(rest)) + parts(rows, chunk);
    if (best == 0 || cost < best_cost) best = chunk, best_cost = cost;
  }
  return best;
}

LinearCrossEntropyValues linear_cross_entropy(Builder& b,
                                              Value x,
                                              Value w,
                                              Value targets,
                                              Value weights,
                                              const LinearCrossEntropyOptions& options) {
  const std::vector<Value> out = b.emit("linear_cross_entropy", {x, w, targets, weights},
                                        {{"vocab", options.vocab},
                                         {"ignore_index", options.ignore_index},
                                         {"cap", options.cap},
                                         {"chunk_rows", options.chunk_rows}});
  return {out[0], out[1]};
}

namespace {

/// Checks what both operations share; returns the shape of the loss.
Shape expect_operands(std::string_view op,
                      const OpTypes& t,
                      size_t weights_index,
                      const Attrs& attrs) {
  const Type &x = t.input(0), &w = t.input(1), &targets = t.input(2);
  expect_float(op, "x", x);
  expect_rank(op, "w", w, 2);
  if (w.dtype != DType::f32 && w.dtype != DType::bf16)
    fail(ErrorKind::dtype, "{}: w is {}, expected f32 or bf16", op, name_of(w.dtype));
  if (x.shape.rank() < 1 || x.elems() == 0 || x.shape.cols() != w.shape.cols())
    fail(ErrorKind::shape, "{}: x has shape {}, expected (..., {}) as w has shape {}", op,
         to_string(x.shape), w.shape.cols(), to_string(w.shape));
  expect_vocab(op, attrs.integer("vocab"), w.shape[0]);
  const double cap = attrs.number("cap");
  if (!(cap >= 0.0))
    fail(ErrorKind::usage, "{}: cap is {}, expected a positive number, or 0 for none", op, cap);
  if (attrs.integer("chunk_rows") < 1)
    fail(ErrorKind::usage, "{}: chunk_rows is {}, expected 1 or more", op,
         attrs.integer("chunk_rows"));
  const Shape rows = rows_shape(x.shape);
  expect_shape(op, "targets", targets, rows);
  expect_dtype(op, "targets", targets, DType::i32);
  if (t.has_input(weights_index)) {
    expect_shape(op, "weights", t.input(weights_index), rows);
    expect_dtype(op, "weights", t.input(weights_index), DType::f32);
  }
  return rows;
}

// linear_cross_entropy: inputs (x, w, targets, weights?) -> (loss, lse). Attributes vocab,
// ignore_index, cap, chunk_rows.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  const Shape rows = expect_operands("linear_cross_entropy", t, 3, attrs);
  return {{DType::f32, rows}, {DType::f32, rows}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  linear_cross_entropy_fwd(exec, {.x = c.input(0),
                                  .w = c.input(1),
                                  .targets = c.input(2),
                                  .weights = c.input(3),
                                  .loss = c.outputs[0],
                                  .lse = c.outputs[1],
                                  .vocab = c.attrs.integer("vocab"),
                                  .ignore_index = c.attrs.integer("ignore_index"),
                                  .cap = c.attrs.number("cap"),
                                  .chunk_rows = c.attrs.integer("chunk_rows")});
}

int64_t scratch_fwd(const OpTypes& t, const Attrs& attrs) {
  return linear_cross_entropy_scratch_bytes(LinearCrossEntropyPass::forward, t.input(0), t.input(1),
                                            attrs.integer("chunk_rows"));
}

int64_t scratch_fwd_cuda(const OpTypes& t, const Attrs& attrs) {
  return LinearCrossEntropyCudaScratch(LinearCrossEntropyPass::forward, t.input(0), t.input(1),
                                       attrs.number("cap"), attrs.integer("chunk_rows"))
      .bytes();
}

/// FLOPs of one of the three matrix products.
int64_t product_flops(const OpTypes& t) {
  return 2 * t.input(0).shape.rows() * t.input(1).elems();
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  Cost cost;
  for (const auto& in : t.inputs) cost.bytes_read += in ? in->bytes() : 0;
  for (const Type& out : t.outputs) cost.bytes_written += out.bytes();
  cost.flops = product_flops(t);
  return cost;
}

void vjp(VjpContext& ctx) {
  const Op op = ctx.op();
  if (ctx.output_grad(1))
    fail(ErrorKind::unsupported, "linear_cross_entropy: no gradient flows through lse");
  if (ctx.needs_grad(3))
    fail(ErrorKind::unsupported, "linear_cross_entropy: no gradient flows to the weights");
  const VjpContext::ParameterGrad dw =
      ctx.needs_grad(1) ? ctx.parameter_grad(1) : VjpContext::ParameterGrad{};
  Attrs attrs = op.attrs;
  attrs.set("accumulate", dw.accumulate);
  const std::vector<Value> out = ctx.builder().emit(
      "linear_cross_entropy_grad",
      {op.inputs[0], op.inputs[1], op.inputs[2], ctx.output_grad(0), op.inputs[3]}, attrs,
      {dw.slot});
  if (ctx.needs_grad(0)) ctx.add_grad(0, out[2]);
}

// linear_cross_entropy_grad: inputs (x, w, targets, dloss, weights?) -> (loss, lse, dx), updates
// (dw?). Attributes as above, and accumulate.
std::vector<Type> infer_grad(const OpTypes& t, const Attrs& attrs) {
  constexpr std::string_view kOp = "linear_cross_entropy_grad";
  const Shape rows = expect_operands(kOp, t, 4, attrs);
  expect_shape(kOp, "dloss", t.input(3), rows);
  expect_dtype(kOp, "dloss", t.input(3), DType::f32);
  if (t.has_update(0)) {
    expect_shape(kOp, "dw", t.update(0), t.input(1).shape);
    expect_dtype(kOp, "dw", t.update(0), DType::f32);
  }
  return {{DType::f32, rows}, {DType::f32, rows}, t.input(0)};
}

void run_grad(const Exec& exec, const OpCall& c) {
  linear_cross_entropy_grad(exec, {.x = c.input(0),
                                   .w = c.input(1),
                                   .targets = c.input(2),
                                   .dloss = c.input(3),
                                   .weights = c.input(4),
                                   .loss = c.outputs[0],
                                   .lse = c.outputs[1],
                                   .dx = c.outputs[2],
                                   .dw = c.update(0),
                                   .vocab = c.attrs.integer("vocab"),
                                   .ignore_index = c.attrs.integer("ignore_index"),
                                   .cap = c.attrs.number("cap"),
                                   .chunk_rows = c.attrs.integer("chunk_rows"),
                                   .accumulate = c.attrs.flag("accumulate")});
}

int64_t scratch_grad(const OpTypes& t, const Attrs& attrs) {
  return linear_cross_entropy_scratch_bytes(LinearCrossEntropyPass::gradient, t.input(0),
                                            t.input(1), attrs.integer("chunk_rows"));
}

int64_t scratch_grad_cuda(const OpTypes& t, const Attrs& attrs) {
  return LinearCrossEntropyCudaScratch(LinearCrossEntropyPass::gradient, t.input(0), t.input(1),
                                       attrs.number("cap"), attrs.integer("chunk_rows"))
      .bytes();
}

Cost cost_grad(const OpTypes& t, const Attrs& attrs) {
  Cost cost = cost_fwd(t, attrs);
  cost.flops = (t.has_update(0) ? 3 : 2) * product_flops(t);
  if (t.has_update(0)) {
    cost.bytes_written += t.update(0).bytes();
    if (attrs.flag("accumulate")) cost.bytes_read += t.update(0).bytes();
  }
  return cost;
}

const OpEntry kEntries[] = {
    {{.name = "linear_cross_entropy", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd},
     run_fwd,
     scratch_fwd,
     scratch_fwd_cuda},
    {{.name = "linear_cross_entropy_grad",
      .infer = infer_grad,
      .cost = cost_grad,
      .inplace = {{2, 0}}},
     run_grad,
     scratch_grad,
     scratch_grad_cuda},
};

}  // namespace

std::span<const OpEntry> linear_cross_entropy_ops() {
  return kEntries;
}

}  // namespace tightloop
