#include "tightloop/ops/common/ce_row.cuh"
#include "tightloop/ops/cross_entropy/cross_entropy_kernels.h"

namespace tightloop {
namespace {

template <int N, typename T>
__global__ void __launch_bounds__(kCeThreads)
    fwd_kernel(CeRows q, const T* logits, int64_t cols, float* loss, float* lse) {
  const int64_t n = blockIdx.x;
  ce_loss_row<N>(q, n, logits + n * cols, PlainLogit{}, loss, lse);
}

template <int N, typename T>
__global__ void __launch_bounds__(kCeThreads) bwd_kernel(
    CeRows q, const T* logits, T* dlogits, int64_t cols, const float* lse, const float* dloss) {
  const int64_t n = blockIdx.x;
  ce_grad_row<N>(q, n, logits + n * cols, dlogits + n * cols, cols, PlainLogit{}, lse[n], dloss[n]);
}

}  // namespace

void cross_entropy_fwd_cuda(const Exec& exec, const CrossEntropyFwd& a) {
  const int64_t rows = a.targets.elems(), cols = a.logits.shape().cols();
  if (rows == 0) return;
  const CeRows q{.targets = a.targets.as<int32_t>(),
                 .weights = a.weights.empty() ? nullptr : a.weights.as<float>(),
                 .vocab = a.vocab,
                 .ignore_index = a.ignore_index};
  with_cuda_type(a.logits.dtype(), "cross_entropy", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int kPack = kElementsOf16Bytes<T>;
    const T* logits = a.logits.as<T>();
    float *loss = a.loss.as<float>(), *lse = a.lse.as<float>();
    if (rows_of_16_bytes<T>(cols, {logits})) {
      fwd_kernel<kPack>
          <<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(q, logits, cols, loss, lse);
    } else {
      fwd_kernel<1>
          <<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(q, logits, cols, loss, lse);
    }
  });
  cuda::check_launch("cross_entropy");
}

void cross_entropy_bwd_cuda(const Exec& exec, const CrossEntropyBwd& a) {
  const int64_t rows = a.targets.elems(), cols = a.logits.shape().cols();
  if (rows == 0) return;
  const CeRows q{.targets = a.targets.as<int32_t>(),
                 .weights = a.weights.empty() ? nullptr : a.weights.as<float>(),
                 .vocab = a.vocab,
                 .ignore_index = a.ignore_index};
  with_cuda_type(a.logits.dtype(), "cross_entropy_bwd", [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int kPack = kElementsOf16Bytes<T>;
    const T* logits = a.logits.as<T>();
    T* dlogits = a.dlogits.as<T>();
    const float *lse = a.lse.as<float>(), *dloss = a.dloss.as<float>();
    if (rows_of_16_bytes<T>(cols, {logits, dlogits})) {
      bwd_kernel<kPack><<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(q, logits, dlogits,
                                                                                 cols, lse, dloss);
    } else {
      bwd_kernel<1><<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(q, logits, dlogits,
                                                                             cols, lse, dloss);
    }
  });
  cuda::check_launch("cross_entropy_bwd");
}

}  // namespace tightloop
