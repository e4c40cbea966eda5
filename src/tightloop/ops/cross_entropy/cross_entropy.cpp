#include "tightloop/ops/cross_entropy/cross_entropy.h"

#include "tightloop/ops/common/ce_checks.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/cross_entropy/cross_entropy_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {

void cross_entropy_fwd(const Exec& exec, const CrossEntropyFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(cross_entropy_fwd_cuda(exec, args));
  check_targets("cross_entropy", args.targets, args.vocab, args.ignore_index);
  exec.device == Device::ref ? cross_entropy_fwd_ref(args) : cross_entropy_fwd_cpu(args);
}

void cross_entropy_bwd(const Exec& exec, const CrossEntropyBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(cross_entropy_bwd_cuda(exec, args));
  check_targets("cross_entropy_bwd", args.targets, args.vocab, args.ignore_index);
  exec.device == Device::ref ? cross_entropy_bwd_ref(args) : cross_entropy_bwd_cpu(args);
}

CrossEntropyValues cross_entropy(
    Builder& b, Value logits, Value targets, Value weights, const CrossEntropyOptions& options) {
  const std::vector<Value> out =
      b.emit("cross_entropy", {logits, targets, weights},
             {{"vocab", options.vocab}, {"ignore_index", options.ignore_index}});
  return {out[0], out[1]};
}

namespace {

// cross_entropy: inputs (logits, targets, weights?) -> (loss, lse). Attributes vocab, ignore_index.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  const Type &logits = t.input(0), &targets = t.input(1);
  expect_float("cross_entropy", "logits", logits);
  if (logits.shape.rank() < 1)
    fail(ErrorKind::shape, "cross_entropy: logits is a scalar, expected (..., vocab)");
  expect_vocab("cross_entropy", attrs.integer("vocab"), logits.shape.cols());
  const Shape rows = rows_shape(logits.shape);
  expect_shape("cross_entropy", "targets", targets, rows);
  expect_dtype("cross_entropy", "targets", targets, DType::i32);
  if (t.has_input(2)) {
    expect_shape("cross_entropy", "weights", t.input(2), rows);
    expect_dtype("cross_entropy", "weights", t.input(2), DType::f32);
  }
  return {{DType::f32, rows}, {DType::f32, rows}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  cross_entropy_fwd(exec, {.logits = c.input(0),
                           .targets = c.input(1),
                           .weights = c.input(2),
                           .loss = c.outputs[0],
                           .lse = c.outputs[1],
                           .vocab = c.attrs.integer("vocab"),
                           .ignore_index = c.attrs.integer("ignore_index")});
}

/// Bytes of the valid columns: padding is not read.
int64_t valid_bytes(const Type& logits, const Attrs& attrs) {
  return logits.bytes() / logits.shape.cols() * attrs.integer("vocab");
}

Cost cost_fwd(const OpTypes& t, const Attrs& attrs) {
  const int64_t read = valid_bytes(t.input(0), attrs);
  const int64_t weights = t.has_input(2) ? t.input(2).bytes() : 0;
  // One comparison, one exponential (counted as one) and two additions per logit.
  return {read + t.input(1).bytes() + weights, t.outputs[0].bytes() + t.outputs[1].bytes(),
          read / size_of(t.input(0).dtype) * 4};
}

void vjp(VjpContext& ctx) {
  const Op op = ctx.op();
  if (ctx.output_grad(1))
    fail(ErrorKind::unsupported, "cross_entropy: no gradient flows through lse");
  if (ctx.needs_grad(2))
    fail(ErrorKind::unsupported, "cross_entropy: no gradient flows to the weights");
  const Value dlogits = ctx.builder().emit1(
      "cross_entropy_bwd",
      {ctx.output_grad(0), op.inputs[0], op.inputs[1], op.outputs[1], op.inputs[2]}, op.attrs);
  ctx.add_grad(0, dlogits);
}

// cross_entropy_bwd: inputs (dloss, logits, targets, lse, weights?) -> (dlogits).
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs& attrs) {
  const Type& logits = t.input(1);
  expect_float("cross_entropy_bwd", "logits", logits);
  expect_vocab("cross_entropy_bwd", attrs.integer("vocab"), logits.shape.cols());
  const Shape rows = rows_shape(logits.shape);
  expect_shape("cross_entropy_bwd", "dloss", t.input(0), rows);
  expect_shape("cross_entropy_bwd", "targets", t.input(2), rows);
  expect_dtype("cross_entropy_bwd", "targets", t.input(2), DType::i32);
  expect_shape("cross_entropy_bwd", "lse", t.input(3), rows);
  if (t.has_input(4)) expect_shape("cross_entropy_bwd", "weights", t.input(4), rows);
  return {logits};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  cross_entropy_bwd(exec, {.dloss = c.input(0),
                           .logits = c.input(1),
                           .targets = c.input(2),
                           .lse = c.input(3),
                           .weights = c.input(4),
                           .dlogits = c.outputs[0],
                           .vocab = c.attrs.integer("vocab"),
                           .ignore_index = c.attrs.integer("ignore_index")});
}

Cost cost_bwd(const OpTypes& t, const Attrs& attrs) {
  const int64_t read = valid_bytes(t.input(1), attrs);
  const int64_t rows = t.input(0).bytes() + t.input(2).bytes() + t.input(3).bytes() +
                       (t.has_input(4) ? t.input(4).bytes() : 0);
  return {read + rows, t.outputs[0].bytes(), read / size_of(t.input(1).dtype) * 3};
}

const OpEntry kEntries[] = {
    {{.name = "cross_entropy", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd}, run_fwd},
    {{.name = "cross_entropy_bwd", .infer = infer_bwd, .cost = cost_bwd, .inplace = {{0, 1}}},
     run_bwd},
};

}  // namespace

std::span<const OpEntry> cross_entropy_ops() {
  return kEntries;
}

}  // namespace tightloop
