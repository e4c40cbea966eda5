#include "tightloop/ops/common/cuda_pack.cuh"
#include "tightloop/ops/sum_squares/sum_squares_kernels.h"

namespace tightloop {
namespace {

constexpr int kThreads = 256;
constexpr int kLastThreads = 1024;
constexpr int kPack = 4;  // elements a thread loads at once
static_assert(kSumSquaresPiece % kPack == 0);

/// The tensors of a call, each cut into pieces; tensor i has pieces from first[i] on.
struct Pieces {
  const void* x[kSumSquaresStack];
  int64_t elems[kSumSquaresStack];
  int32_t first[kSumSquaresStack];
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

__device__ double square(float x) {
  return static_cast<double>(x) * static_cast<double>(x);
}

/// partial[piece] = its sum of squares, a block each.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    partial_sums(const __grid_constant__ Pieces pieces, double* partial) {
  const auto piece = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int tensor = pieces.tensor_of(piece);
  const int64_t begin = (piece - pieces.first[tensor]) * kSumSquaresPiece;
  const int64_t left = pieces.elems[tensor] - begin;
  const auto count = static_cast<int>(left < kSumSquaresPiece ? left : kSumSquaresPiece);
  const T* x = static_cast<const T*>(pieces.x[tensor]) + begin;
  const int whole = count / N * N;
  double sum = 0.0;
#pragma unroll 8
  for (int i = thread * N; i < whole; i += kThreads * N) {
    float values[N];
    load_floats<N>(x + i, values);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += square(values[j]);
  }
  if (whole + thread < count) sum += square(load_as_float(x + whole + thread));
  sum = block_sum_f64<kThreads>(sum);
  if (thread == 0) partial[piece] = sum;
}

__global__ void __launch_bounds__(kLastThreads)
    add_partial_sums(const double* partial, double* acc, int count) {
  double sum = 0.0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kLastThreads) sum += partial[i];
  sum = block_sum_f64<kLastThreads>(sum);
  if (threadIdx.x == 0) *acc += sum;
}

}  // namespace

void sum_squares_cuda(const Exec& exec, const SumSquares& a) {
  Pieces pieces{};
  int64_t count = 0;
  bool packed = true;
  for (const ConstTensorView& x : a.x) {
    if (x.elems() == 0) continue;
    const auto i = static_cast<size_t>(pieces.tensors++);
    pieces.x[i] = x.data, pieces.elems[i] = x.elems();
    pieces.first[i] = static_cast<int32_t>(count);
    count += sum_squares_pieces(x.elems());
    packed = packed && start_at_16_bytes({x.data});
  }
  if (count == 0) return;
  const unsigned blocks = grid_for(count, 1);
  auto* partial = reinterpret_cast<double*>(exec.scratch.data());
  with_cuda_type(a.x[0].dtype(), "sum_squares", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto kernel = packed ? partial_sums<T, kPack> : partial_sums<T, 1>;
    kernel<<<blocks, kThreads, 0, cuda_stream(exec)>>>(pieces, partial);
  });
  add_partial_sums<<<1, kLastThreads, 0, cuda_stream(exec)>>>(partial, a.acc.as<double>(),
                                                              static_cast<int>(count));
  cuda::check_launch("sum_squares");
}

}  // namespace tightloop
