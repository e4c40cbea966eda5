#include "tightloop/ops/sum_squares/sum_squares.h"

#include <utility>

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {

void sum_squares(const Exec& exec, const SumSquares& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(sum_squares_cuda(exec, args));
  for (const ConstTensorView& x : args.x) {
    if (exec.device == Device::ref)
      sum_squares_ref(x, args.acc);
    else
      sum_squares_cpu(x, args.acc, reinterpret_cast<double*>(exec.scratch.data()));
  }
}

void sum_squares(Builder& b, std::vector<Value> x, Value acc) {
  b.emit("sum_squares", std::move(x), {}, {acc});
}

namespace {

// sum_squares: inputs (x, ...) -> (), updates (acc).
std::vector<Type> infer(const OpTypes& t, const Attrs&) {
  if (t.inputs.empty() || t.inputs.size() > kSumSquaresStack)
    fail(ErrorKind::shape, "sum_squares: {} tensors, expected 1 to {}", t.inputs.size(),
         kSumSquaresStack);
  const DType x = t.input(0).dtype;
  if (x != DType::f32 && x != DType::bf16)
    fail(ErrorKind::dtype, "sum_squares: x is {}, expected f32 or bf16", name_of(x));
  for (size_t i = 1; i < t.inputs.size(); ++i) expect_dtype("sum_squares", "x", t.input(i), x);
  expect_shape("sum_squares", "acc", t.update(0), {});
  expect_dtype("sum_squares", "acc", t.update(0), DType::f64);
  return {};
}

void run(const Exec& exec, const OpCall& c) {
  sum_squares(exec, {.x = c.inputs, .acc = c.update(0)});
}

int64_t scratch(const OpTypes&, const Attrs&) {
  return kSumSquaresBlocks * int64_t{sizeof(double)};
}

int64_t scratch_cuda(const OpTypes& t, const Attrs&) {
  int64_t pieces = 0;
  for (size_t i = 0; i < t.inputs.size(); ++i) pieces += sum_squares_pieces(t.input(i).elems());
  return pieces * int64_t{sizeof(double)};
}

Cost cost(const OpTypes& t, const Attrs&) {
  Cost cost{t.update(0).bytes(), t.update(0).bytes(), 0};
  for (size_t i = 0; i < t.inputs.size(); ++i)
    cost += {t.input(i).bytes(), 0, 2 * t.input(i).elems()};
  return cost;
}

const OpEntry kEntries[] = {
    {{.name = "sum_squares", .infer = infer, .cost = cost}, run, scratch, scratch_cuda}};

}  // namespace

std::span<const OpEntry> sum_squares_ops() {
  return kEntries;
}

}  // namespace tightloop
