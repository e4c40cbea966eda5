#include "tightloop/ops/basic/basic_kernels.h"
#include "tightloop/ops/common/cuda_map.cuh"

namespace tightloop {
namespace {

struct Add {
  __device__ void operator()(const float (&x)[2], float (&z)[1]) const { z[0] = x[0] + x[1]; }
};
struct Mul {
  __device__ void operator()(const float (&x)[2], float (&z)[1]) const { z[0] = x[0] * x[1]; }
};

/// z = fn(x, y) element by element.
template <typename Fn>
void map_pairs(const Exec& exec,
               const char* op,
               const ConstTensorView& x,
               const ConstTensorView& y,
               const TensorView& z,
               const Fn& fn) {
  with_cuda_type(z.dtype(), op, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    cuda_map<T, 2, 1>(exec, op, z.elems(), {x.as<T>(), y.as<T>()}, {z.as<T>()}, fn);
  });
}

template <typename T>
void broadcast_typed(const Exec& exec, const T* x, T* y, int64_t n) {
  cuda_for_each(exec, "broadcast", n, [=] __device__(int64_t i) { y[i] = *x; });
}

template <typename T>
void fill_typed(const Exec& exec, T* y, float value, int64_t n) {
  cuda_for_each(exec, "fill", n, [=] __device__(int64_t i) { store_float(y + i, value); });
}

void fill_double(const Exec& exec, double* y, double value, int64_t n) {
  cuda_for_each(exec, "fill", n, [=] __device__(int64_t i) { y[i] = value; });
}

constexpr int kCastPack = 4;          // elements a thread moves at once
constexpr int kCastAhead = 4;         // of those it loads before it stores any
constexpr int64_t kCastPiece = 8192;  // elements of a block
static_assert(kCastPiece % (kElementThreads * kCastPack * kCastAhead) == 0);
constexpr size_t kCastStack = 128;  // tensors of a launch

/// The tensors of a launch, each cut into pieces; tensor i has pieces from first[i] on.
struct CastPieces {
  const void* x[kCastStack];
  void* y[kCastStack];
  int64_t elems[kCastStack];
  int32_t first[kCastStack];
  int32_t tensors;

  __device__ int tensor_of(int piece) const {
    int found = 0;
    for (int beyond = tensors; beyond - found > 1;) {
      const int middle = (found + beyond) / 2;
      (first[middle] <= piece ? found : beyond) = middle;
    }
    return found;
  }
};

/// A block a piece.
template <typename From, typename To, int N>
__global__ void __launch_bounds__(kElementThreads)
    cast_kernel(const __grid_constant__ CastPieces pieces) {
  const auto piece = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int tensor = pieces.tensor_of(piece);
  const int64_t begin = (piece - pieces.first[tensor]) * kCastPiece;
  const auto count = static_cast<int>(min(kCastPiece, pieces.elems[tensor] - begin));
  const From* x = static_cast<const From*>(pieces.x[tensor]) + begin;
  To* y = static_cast<To*>(pieces.y[tensor]) + begin;
  const int whole = count / N * N;
  for (int round = thread * N; round < whole; round += kElementThreads * N * kCastAhead) {
    float v[kCastAhead][N];
#pragma unroll
    for (int k = 0; k < kCastAhead; ++k) {
      const int i = round + k * kElementThreads * N;
      if (i < whole) load_floats(x + i, v[k]);
    }
#pragma unroll
    for (int k = 0; k < kCastAhead; ++k) {
      const int i = round + k * kElementThreads * N;
      if (i < whole) store_floats(y + i, v[k]);
    }
  }
  if (whole + thread < count) {
    float v[1];
    load_floats(x + whole + thread, v);
    store_floats(y + whole + thread, v);
  }
}

/// Tensors from `from` on, as many as a launch takes.
template <typename From, typename To>
void cast_stack(const Exec& exec, const OpCall& c, size_t from) {
  CastPieces pieces{};
  int64_t count = 0;
  bool packed = true;
  for (size_t k = from; k < c.inputs.size() && k < from + kCastStack; ++k) {
    const ConstTensorView& x = c.inputs[k];
    if (x.elems() == 0) continue;
    const auto i = static_cast<size_t>(pieces.tensors++);
    pieces.x[i] = x.data, pieces.y[i] = c.outputs[k].data, pieces.elems[i] = x.elems();
    pieces.first[i] = static_cast<int32_t>(count);
    count += (x.elems() + kCastPiece - 1) / kCastPiece;
    packed = packed && start_at_16_bytes({x.data, c.outputs[k].data});
  }
  if (count == 0) return;
  const auto kernel = packed ? cast_kernel<From, To, kCastPack> : cast_kernel<From, To, 1>;
  kernel<<<grid_for(count, 1), kElementThreads, 0, cuda_stream(exec)>>>(pieces);
  cuda::check_launch("cast");
}

constexpr int kSumThreads = 256;

/// Sum over begin..end-1 by a block, in float64.
template <typename Load>
__device__ double sum_over(int64_t begin, int64_t end, Load&& load) {
  double total = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kSumThreads) total += load(i);
  return block_sum_f64<kSumThreads>(total);
}

template <typename T>
__global__ void sum_blocks(const T* x, double* partial, int64_t n) {
  const int64_t begin = blockIdx.x * kSumBlock, end = min(n, begin + kSumBlock);
  const double total =
      sum_over(begin, end, [x](int64_t i) { return static_cast<double>(load_as_float(x + i)); });
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename T>
__global__ void sum_partials(const double* partial, int64_t blocks, T* out) {
  const double total = sum_over(0, blocks, [partial](int64_t i) { return partial[i]; });
  if (threadIdx.x == 0) store_float(out, static_cast<float>(total));
}

}  // namespace

void add_cuda(const Exec& exec, const OpCall& c) {
  map_pairs(exec, "add", c.inputs[0], c.inputs[1], c.outputs[0], Add{});
}

void mul_cuda(const Exec& exec, const OpCall& c) {
  map_pairs(exec, "mul", c.inputs[0], c.inputs[1], c.outputs[0], Mul{});
}

void sum_cuda(const Exec& exec, const OpCall& c) {
  const int64_t n = c.inputs[0].elems(), blocks = (n + kSumBlock - 1) / kSumBlock;
  double* partial = reinterpret_cast<double*>(exec.scratch.data());
  with_cuda_type(c.inputs[0].dtype(), "sum", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (blocks > 0)
      sum_blocks<T><<<grid_for(blocks, 1), kSumThreads, 0, cuda_stream(exec)>>>(c.inputs[0].as<T>(),
                                                                                partial, n);
    sum_partials<T>
        <<<1, kSumThreads, 0, cuda_stream(exec)>>>(partial, blocks, c.outputs[0].as<T>());
  });
  cuda::check_launch("sum");
}

void broadcast_cuda(const Exec& exec, const OpCall& c) {
  with_cuda_type(c.outputs[0].dtype(), "broadcast", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    broadcast_typed(exec, c.inputs[0].as<T>(), c.outputs[0].as<T>(), c.outputs[0].elems());
  });
}

void constant_cuda(const Exec& exec, const OpCall& c) {
  fill_typed(exec, c.outputs[0].as<float>(), static_cast<float>(c.attrs.number("value")), 1);
}

void copy_cuda(const Exec& exec, const TensorView& to, const ConstTensorView& from) {
  if (from.bytes() == 0 || to.data == from.data) return;
  cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToDevice,
                  cuda_stream(exec));
  cuda::check_launch("copy");
}

void cast_cuda(const Exec& exec, const OpCall& c) {
  if (c.inputs.empty()) return;
  if (c.inputs[0].dtype() == c.outputs[0].dtype()) {
    for (size_t i = 0; i < c.inputs.size(); ++i) copy_cuda(exec, c.outputs[i], c.inputs[i]);
    return;
  }
  with_cuda_type(c.inputs[0].dtype(), "cast", [&](auto* from) {
    using From = std::remove_pointer_t<decltype(from)>;
    with_cuda_type(c.outputs[0].dtype(), "cast", [&](auto* to) {
      using To = std::remove_pointer_t<decltype(to)>;
      for (size_t i = 0; i < c.inputs.size(); i += kCastStack) cast_stack<From, To>(exec, c, i);
    });
  });
}

void accumulate_cuda(const Exec& exec, const OpCall& c) {
  map_pairs(exec, "store", c.updates[0], c.inputs[0], c.updates[0], Add{});
}

void fill_cuda(const Exec& exec, const OpCall& c) {
  if (c.updates[0].dtype() == DType::f64)
    return fill_double(exec, c.updates[0].as<double>(), c.attrs.number("value"),
                       c.updates[0].elems());
  with_cuda_type(c.updates[0].dtype(), "fill", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    fill_typed(exec, c.updates[0].as<T>(), static_cast<float>(c.attrs.number("value")),
               c.updates[0].elems());
  });
}

}  // namespace tightloop
