#include "tightloop/ops/sum_squares/sum_squares.h"

#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {

void sum_squares(const Exec& exec, const SumSquares& args) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(sum_squares_cuda(exec, args));
  if (exec.device == Device::ref) return sum_squares_ref(args);
  sum_squares_cpu(args, reinterpret_cast<double*>(exec.scratch.data()));
}

void sum_squares(Builder& b, Value x, Value acc) {
  b.emit("sum_squares", {x}, {}, {acc});
}

namespace {

// sum_squares: inputs (x) -> (), updates (acc).
std::vector<Type> infer(const OpTypes& t, const Attrs&) {
  const DType x = t.input(0).dtype;
  if (x != DType::f32 && x != DType::bf16)
    fail(ErrorKind::dtype, "sum_squares: x is {}, expected f32 or bf16", name_of(x));
  expect_shape("sum_squares", "acc", t.update(0), {});
  expect_dtype("sum_squares", "acc", t.update(0), DType::f64);
  return {};
}

void run(const Exec& exec, const OpCall& c) {
  sum_squares(exec, {.x = c.input(0), .acc = c.update(0)});
}

int64_t scratch(const OpTypes&, const Attrs&) {
  return kSumSquaresBlocks * int64_t{sizeof(double)};
}

int64_t scratch_cuda(const OpTypes&, const Attrs&) {
  return kSumSquaresCudaBlocks * int64_t{sizeof(double)};
}

Cost cost(const OpTypes& t, const Attrs&) {
  return {t.input(0).bytes() + t.update(0).bytes(), t.update(0).bytes(), 2 * t.input(0).elems()};
}

const OpEntry kEntries[] = {
    {{.name = "sum_squares", .infer = infer, .cost = cost}, run, scratch, scratch_cuda}};

}  // namespace

std::span<const OpEntry> sum_squares_ops() {
  return kEntries;
}

}  // namespace tightloop
