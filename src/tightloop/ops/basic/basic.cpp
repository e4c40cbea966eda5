#include "tightloop/ops/basic/basic.h"

#include <cstring>

#include "tightloop/core/threads.h"
#include "tightloop/ops/basic/basic_kernels.h"
#include "tightloop/ops/common/dispatch.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/program/differentiate.h"

namespace tightloop {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread takes at once

// Shapes are stored in attributes as d0, d1, …
Attrs shape_attrs(const Shape& shape) {
  Attrs attrs{{"rank", int64_t{shape.rank()}}};
  for (int i = 0; i < shape.rank(); ++i) attrs.set("d" + std::to_string(i), shape[i]);
  return attrs;
}

Shape attr_shape(const Attrs& attrs) {
  Shape shape;
  for (int64_t i = 0; i < attrs.integer("rank"); ++i)
    shape.push_back(attrs.integer("d" + std::to_string(i)));
  return shape;
}

/// Calls fn with a null pointer of the element type: double on the reference device.
template <typename Fn>
void with_float_type(DType dtype, std::string_view op, Fn&& fn) {
  if (dtype == DType::f64) return fn(static_cast<double*>(nullptr));
  if (dtype == DType::f32) return fn(static_cast<float*>(nullptr));
  fail(ErrorKind::unsupported, "{}: {} is not supported", op, name_of(dtype));
}

std::vector<Type> infer_binary(const OpTypes& t, const Attrs&) {
  expect_float("add/mul", "x", t.input(0));
  expect_shape("add/mul", "y", t.input(1), t.input(0).shape);
  expect_dtype("add/mul", "y", t.input(1), t.input(0).dtype);
  return {t.input(0)};
}

Cost cost_elementwise(const OpTypes& t, const Attrs&) {
  const int64_t bytes = t.input(0).bytes();
  return {2 * bytes, bytes, t.input(0).elems()};
}

TL_CLONES void add_loop(const float* x, const float* y, float* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = x[i] + y[i];
}
TL_CLONES void mul_loop(const float* x, const float* y, float* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = x[i] * y[i];
}
void add_loop(const double* x, const double* y, double* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = x[i] + y[i];
}
void mul_loop(const double* x, const double* y, double* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = x[i] * y[i];
}

void run_add(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(add_cuda(exec, c));
  with_float_type(c.outputs[0].dtype(), "add", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *x = c.inputs[0].as<T>(), *y = c.inputs[1].as<T>();
    T* z = c.outputs[0].as<T>();
    parallel_for(c.outputs[0].elems(), kGrain, [&](int64_t begin, int64_t end) {
      add_loop(x + begin, y + begin, z + begin, end - begin);
    });
  });
}

void run_mul(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(mul_cuda(exec, c));
  with_float_type(c.outputs[0].dtype(), "mul", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T *x = c.inputs[0].as<T>(), *y = c.inputs[1].as<T>();
    T* z = c.outputs[0].as<T>();
    parallel_for(c.outputs[0].elems(), kGrain, [&](int64_t begin, int64_t end) {
      mul_loop(x + begin, y + begin, z + begin, end - begin);
    });
  });
}

void vjp_add(VjpContext& ctx) {
  for (size_t i : {size_t{0}, size_t{1}}) {
    if (!ctx.needs_grad(i)) continue;
    ctx.add_grad(i, ctx.output_grad(0));
  }
}

void vjp_mul(VjpContext& ctx) {
  for (size_t i : {size_t{0}, size_t{1}}) {
    if (!ctx.needs_grad(i)) continue;
    ctx.add_grad(i, mul(ctx.builder(), ctx.output_grad(0), ctx.op().inputs[1 - i]));
  }
}

std::vector<Type> infer_sum(const OpTypes& t, const Attrs&) {
  expect_float("sum", "x", t.input(0));
  return {{t.input(0).dtype, {}}};
}

int64_t scratch_sum(const OpTypes& t, const Attrs&) {
  return (t.input(0).elems() / kSumBlock + 1) * int64_t{sizeof(double)};
}

void run_sum(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(sum_cuda(exec, c));
  const int64_t n = c.inputs[0].elems();
  const int64_t blocks = (n + kSumBlock - 1) / kSumBlock;
  double* partial = reinterpret_cast<double*>(exec.scratch.data());
  with_float_type(c.outputs[0].dtype(), "sum", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T* x = c.inputs[0].as<T>();
    parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        double total = 0.0;
        const int64_t stop = std::min(n, (block + 1) * kSumBlock);
        for (int64_t i = block * kSumBlock; i < stop; ++i) total += static_cast<double>(x[i]);
        partial[block] = total;
      }
    });
    double total = 0.0;
    for (int64_t block = 0; block < blocks; ++block) total += partial[block];
    *c.outputs[0].as<T>() = static_cast<T>(total);
  });
}

void vjp_sum(VjpContext& ctx) {
  const Type& x = ctx.type(ctx.op().inputs[0]);
  const Value dx = ctx.builder().emit1("broadcast", {ctx.output_grad(0)}, shape_attrs(x.shape));
  ctx.add_grad(0, dx);
}

std::vector<Type> infer_broadcast(const OpTypes& t, const Attrs& attrs) {
  expect_shape("broadcast", "x", t.input(0), {});
  return {{t.input(0).dtype, attr_shape(attrs)}};
}

void run_broadcast(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(broadcast_cuda(exec, c));
  with_float_type(c.outputs[0].dtype(), "broadcast", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const T value = *c.inputs[0].as<T>();
    T* y = c.outputs[0].as<T>();
    std::fill(y, y + c.outputs[0].elems(), value);
  });
}

std::vector<Type> infer_constant(const OpTypes&, const Attrs&) {
  return {{DType::f32, {}}};
}

void run_constant(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(constant_cuda(exec, c));
  with_float_type(c.outputs[0].dtype(), "constant", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    *c.outputs[0].as<T>() = static_cast<T>(c.attrs.number("value"));
  });
}

std::vector<Type> infer_reshape(const OpTypes& t, const Attrs& attrs) {
  const Shape shape = attr_shape(attrs);
  if (shape.elems() != t.input(0).elems())
    fail(ErrorKind::shape, "reshape: {} has {} elements, {} has {}", to_string(t.input(0).shape),
         t.input(0).elems(), to_string(shape), shape.elems());
  return {{t.input(0).dtype, shape}};
}

// Only interpreters that give every value its own memory get here; a plan aliases instead.
void run_reshape(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda)
    return TL_CUDA_KERNEL(copy_cuda(exec, c.outputs[0], c.inputs[0]));
  if (c.outputs[0].data != c.inputs[0].data)
    std::memcpy(c.outputs[0].data, c.inputs[0].data, static_cast<size_t>(c.inputs[0].bytes()));
}

void vjp_reshape(VjpContext& ctx) {
  const Type& x = ctx.type(ctx.op().inputs[0]);
  const Value dx = reshape(ctx.builder(), ctx.output_grad(0), x.shape);
  ctx.add_grad(0, dx);
}

// cast: inputs (x, ...) of one dtype -> (y, ...). Attribute dtype: of the outputs.
std::vector<Type> infer_cast(const OpTypes& t, const Attrs& attrs) {
  std::vector<Type> y;
  for (size_t i = 0; i < t.inputs.size(); ++i) {
    expect_float("cast", "x", t.input(i));
    expect_dtype("cast", "x", t.input(i), t.input(0).dtype);
    y.push_back({static_cast<DType>(attrs.integer("dtype")), t.input(i).shape});
  }
  return y;
}

void cast_cpu(const Exec& exec, const ConstTensorView& x, const TensorView& y) {
  if (exec.device == Device::ref || x.dtype() == y.dtype()) {
    std::memcpy(y.data, x.data, static_cast<size_t>(x.bytes()));
    return;
  }
  parallel_for(x.elems(), kGrain, [&](int64_t begin, int64_t end) {
    if (x.dtype() == DType::f32 && y.dtype() == DType::bf16) {
      for (int64_t i = begin; i < end; ++i) y.as<bf16>()[i] = to_bf16(x.as<float>()[i]);
    } else if (x.dtype() == DType::bf16 && y.dtype() == DType::f32) {
      for (int64_t i = begin; i < end; ++i) y.as<float>()[i] = to_float(x.as<bf16>()[i]);
    } else {
      fail(ErrorKind::unsupported, "cast: {} to {} is not supported", name_of(x.dtype()),
           name_of(y.dtype()));
    }
  });
}

void run_cast(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(cast_cuda(exec, c));
  for (size_t i = 0; i < c.inputs.size(); ++i) cast_cpu(exec, c.inputs[i], c.outputs[i]);
}

void vjp_cast(VjpContext& ctx) {
  for (size_t i = 0; i < ctx.op().inputs.size(); ++i) {
    if (!ctx.needs_grad(i) || !ctx.output_grad(i)) continue;
    const DType dtype = ctx.type(ctx.op().inputs[i]).dtype;
    ctx.add_grad(i, cast(ctx.builder(), ctx.output_grad(i), dtype));
  }
}

std::vector<Type> infer_store(const OpTypes& t, const Attrs&) {
  if (t.input(0).elems() != t.update(0).elems())
    fail(ErrorKind::shape, "store: slot has shape {}, the value {}", to_string(t.update(0).shape),
         to_string(t.input(0).shape));
  expect_dtype("store", "slot", t.update(0), t.input(0).dtype);
  return {};
}

void run_store(const Exec& exec, const OpCall& c) {
  const ConstTensorView& x = c.inputs[0];
  const TensorView& slot = c.updates[0];
  if (exec.device == Device::cuda) {
    if (c.attrs.flag("accumulate")) return TL_CUDA_KERNEL(accumulate_cuda(exec, c));
    return TL_CUDA_KERNEL(copy_cuda(exec, slot, x));
  }
  if (!c.attrs.flag("accumulate")) {
    std::memcpy(slot.data, x.data, static_cast<size_t>(x.bytes()));
    return;
  }
  with_float_type(slot.dtype(), "store", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T* y = slot.as<T>();
    const T* from = x.as<T>();
    parallel_for(x.elems(), kGrain, [&](int64_t begin, int64_t end) {
      add_loop(y + begin, from + begin, y + begin, end - begin);
    });
  });
}

std::vector<Type> infer_fill(const OpTypes& t, const Attrs&) {
  expect_float("fill", "slot", t.update(0));
  return {};
}

Cost cost_fill(const OpTypes& t, const Attrs&) {
  return {0, t.update(0).bytes(), 0};
}

void run_fill(const Exec& exec, const OpCall& c) {
  if (exec.device == Device::cuda) return TL_CUDA_KERNEL(fill_cuda(exec, c));
  with_float_type(c.updates[0].dtype(), "fill", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T* y = c.updates[0].as<T>();
    const T value = static_cast<T>(c.attrs.number("value"));
    parallel_for(c.updates[0].elems(), kGrain,
                 [&](int64_t begin, int64_t end) { std::fill(y + begin, y + end, value); });
  });
}

const OpEntry kEntries[] = {
    {{.name = "add",
      .infer = infer_binary,
      .vjp = vjp_add,
      .cost = cost_elementwise,
      .inplace = {{0, 0}, {0, 1}}},
     run_add},
    {{.name = "mul",
      .infer = infer_binary,
      .vjp = vjp_mul,
      .cost = cost_elementwise,
      .inplace = {{0, 0}, {0, 1}}},
     run_mul},
    {{.name = "sum", .infer = infer_sum, .vjp = vjp_sum}, run_sum, scratch_sum, scratch_sum},
    {{.name = "broadcast", .infer = infer_broadcast}, run_broadcast},
    {{.name = "constant", .infer = infer_constant}, run_constant},
    {{.name = "reshape", .infer = infer_reshape, .vjp = vjp_reshape, .alias = true}, run_reshape},
    {{.name = "cast", .infer = infer_cast, .vjp = vjp_cast}, run_cast},
    {{.name = "store", .infer = infer_store}, run_store},
    {{.name = "fill", .infer = infer_fill, .cost = cost_fill}, run_fill},
};

}  // namespace

std::span<const OpEntry> basic_ops() {
  return kEntries;
}

Value add(Builder& b, Value x, Value y) {
  return b.emit1("add", {x, y});
}
Value mul(Builder& b, Value x, Value y) {
  return b.emit1("mul", {x, y});
}
Value sum(Builder& b, Value x) {
  return b.emit1("sum", {x});
}
Value reshape(Builder& b, Value x, const Shape& shape) {
  return b.emit1("reshape", {x}, shape_attrs(shape));
}
Value cast(Builder& b, Value x, DType dtype) {
  return b.emit1("cast", {x}, {{"dtype", static_cast<int64_t>(dtype)}});
}
void store(Builder& b, Value x, Value slot, bool accumulate) {
  b.emit("store", {x}, {{"accumulate", accumulate}}, {slot});
}
void fill(Builder& b, Value slot, double value) {
  b.emit("fill", {}, {{"value", value}}, {slot});
}

}  // namespace tightloop
