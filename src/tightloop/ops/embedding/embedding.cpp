#include "tightloop/ops/embedding/embedding.h"

#include <algorithm>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/embedding/embedding_kernels.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

void check_tokens(const ConstTensorView& tokens, int64_t vocab) {
  const int32_t* t = tokens.as<int32_t>();
  for (int64_t n = 0; n < tokens.elems(); ++n) {
    if (t[n] < 0 || t[n] >= vocab)
      fail(ErrorKind::data, "embedding: token {} at position {}, expected 0..{}", t[n], n,
           vocab - 1);
  }
}

}  // namespace

void embedding_fwd(const Exec& exec, const EmbeddingFwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(embedding_fwd_cuda(exec, args));
  check_tokens(args.tokens, args.table.shape()[0]);
  exec.device == Device::ref ? embedding_fwd_ref(args) : embedding_fwd_cpu(args);
}

void token_order(const Exec& exec, const TokenOrder& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(token_order_cuda(exec, args));
  check_tokens(args.tokens, args.vocab);
  if (exec.device == Device::ref) return token_order_ref(args);
  token_order_cpu(args, reinterpret_cast<int32_t*>(exec.scratch.data()));
}

void embedding_bwd(const Exec& exec, const EmbeddingBwd& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(embedding_bwd_cuda(exec, args));
  check_tokens(args.tokens, args.dtable.shape()[0]);
  if (exec.device == Device::ref) return embedding_bwd_ref(args);
  embedding_bwd_cpu(args, reinterpret_cast<int32_t*>(exec.scratch.data()));
}

Value token_order(Builder& b, Value tokens, int64_t vocab) {
  return b.emit1("token_order", {tokens}, {{"vocab", vocab}});
}

Value embedding(Builder& b, Value tokens, Value table, DType dtype) {
  return b.emit1("embedding", {tokens, table}, {{"dtype", static_cast<int64_t>(dtype)}});
}

namespace {

// embedding: inputs (tokens, table) -> (y). Attribute dtype: of y.
std::vector<Type> infer_fwd(const OpTypes& t, const Attrs& attrs) {
  const Type &tokens = t.input(0), &table = t.input(1);
  expect_dtype("embedding", "tokens", tokens, DType::i32);
  expect_rank("embedding", "table", table, 2);
  if (table.dtype != DType::f32 && table.dtype != DType::bf16)
    fail(ErrorKind::dtype, "embedding: table is {}, expected f32 or bf16", name_of(table.dtype));
  Shape y = tokens.shape;
  y.push_back(table.shape.cols());
  return {{static_cast<DType>(attrs.integer("dtype")), y}};
}

void run_fwd(const Exec& exec, const OpCall& c) {
  embedding_fwd(exec, {.tokens = c.input(0), .table = c.input(1), .y = c.outputs[0]});
}

Cost cost_fwd(const OpTypes& t, const Attrs&) {
  const int64_t tokens = t.input(0).elems(), width = t.input(1).shape.cols();
  return {t.input(0).bytes() + tokens * width * size_of(t.input(1).dtype), t.outputs[0].bytes(), 0};
}

/// The order that an earlier backward made of these tokens, or a new one.
Value shared_order(Builder& b, Value tokens, int64_t vocab) {
  const Attrs attrs{{"vocab", vocab}};
  for (const Op& op : b.program().ops()) {
    if (op.def->name == "token_order" && op.inputs[0] == tokens && op.attrs == attrs)
      return op.outputs[0];
  }
  return token_order(b, tokens, vocab);
}

void vjp(VjpContext& ctx) {
  if (!ctx.needs_grad(1)) return;
  const VjpContext::ParameterGrad grad = ctx.parameter_grad(1);
  Builder& b = ctx.builder();
  const Value tokens = ctx.op().inputs[0];
  const Value order = shared_order(b, tokens, ctx.type(grad.slot).shape[0]);
  b.emit("embedding_bwd", {tokens, ctx.output_grad(0), order}, {{"accumulate", grad.accumulate}},
         {grad.slot});
}

// token_order: inputs (tokens) -> (order). Attribute vocab.
std::vector<Type> infer_order(const OpTypes& t, const Attrs&) {
  expect_dtype("token_order", "tokens", t.input(0), DType::i32);
  return {{DType::i32, {t.input(0).elems()}}};
}

void run_order(const Exec& exec, const OpCall& c) {
  token_order(exec,
              {.tokens = c.input(0), .order = c.outputs[0], .vocab = c.attrs.integer("vocab")});
}

int64_t scratch_order(const OpTypes&, const Attrs& attrs) {
  return (attrs.integer("vocab") + 1) * int64_t{sizeof(int32_t)};
}

int64_t scratch_order_cuda(const OpTypes& t, const Attrs&) {
  const int64_t tokens = t.input(0).elems();
  return (tokens + kEmbeddingDigits * embedding_chunks(tokens)) * int64_t{sizeof(int32_t)};
}

// embedding_bwd: inputs (tokens, dy, order) -> (), updates (dtable). Attribute accumulate.
std::vector<Type> infer_bwd(const OpTypes& t, const Attrs&) {
  const Type &tokens = t.input(0), &dtable = t.update(0);
  expect_dtype("embedding_bwd", "tokens", tokens, DType::i32);
  expect_rank("embedding_bwd", "dtable", dtable, 2);
  expect_dtype("embedding_bwd", "dtable", dtable, DType::f32);
  Shape dy = tokens.shape;
  dy.push_back(dtable.shape.cols());
  expect_shape("embedding_bwd", "dy", t.input(1), dy);
  expect_float("embedding_bwd", "dy", t.input(1));
  expect_dtype("embedding_bwd", "order", t.input(2), DType::i32);
  expect_shape("embedding_bwd", "order", t.input(2), {tokens.elems()});
  return {};
}

void run_bwd(const Exec& exec, const OpCall& c) {
  embedding_bwd(exec, {.tokens = c.input(0),
                       .dy = c.input(1),
                       .order = c.input(2),
                       .dtable = c.update(0),
                       .accumulate = c.attrs.flag("accumulate")});
}

int64_t scratch_bwd(const OpTypes& t, const Attrs&) {
  return (t.update(0).shape[0] + 1) * int64_t{sizeof(int32_t)};
}

int64_t scratch_bwd_cuda(const OpTypes& t, const Attrs&) {
  return 2 * embedding_pieces(t.input(0).elems()) * t.update(0).shape.cols() *
         int64_t{sizeof(float)};
}

Cost cost_bwd(const OpTypes& t, const Attrs& attrs) {
  // Overwriting writes every row; adding moves at most as many rows as there are tokens.
  const Type &tokens = t.input(0), &dy = t.input(1), &dtable = t.update(0);
  const int64_t touched = std::min(dy.bytes(), dtable.bytes());
  const bool accumulate = attrs.flag("accumulate");
  return {tokens.bytes() + t.input(2).bytes() + dy.bytes() + (accumulate ? touched : 0),
          accumulate ? touched : dtable.bytes(), dy.elems()};
}

const OpEntry kEntries[] = {
    {{.name = "embedding", .infer = infer_fwd, .vjp = vjp, .cost = cost_fwd}, run_fwd},
    {{.name = "token_order", .infer = infer_order}, run_order, scratch_order, scratch_order_cuda},
    {{.name = "embedding_bwd", .infer = infer_bwd, .cost = cost_bwd},
     run_bwd,
     scratch_bwd,
     scratch_bwd_cuda},
};

}  // namespace

std::span<const OpEntry> embedding_ops() {
  return kEntries;
}

}  // namespace tightloop
