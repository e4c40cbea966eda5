#include <algorithm>

#include "tightloop/ops/common/ce_row.cuh"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"

namespace tightloop {
namespace {

/// Row n of the chunk: loss and lse, and with a gradient its logits overwritten by it.
template <bool Grad, typename T, typename Logit>
__global__ void __launch_bounds__(kCeThreads) row_kernel(
    CeRows q, T* logits, int64_t ld, Logit logit, const float* dloss, float* loss, float* lse) {
  constexpr int kPack = kElementsOf16Bytes<T>;
  const int64_t n = blockIdx.x;
  T* x = logits + n * ld;
  const float row_lse = ce_loss_row<kPack>(q, n, x, logit, loss, lse);
  if constexpr (Grad) ce_grad_row<kPack>(q, n, x, x, ld, logit, row_lse, dloss[n]);
}

/// The same, with what remains to be multiplied with the row of the gradient.
template <bool Grad, typename T>
__global__ void __launch_bounds__(kCeOffsetThreads) offset_row_kernel(CeRows q,
                                                                      T* logits,
                                                                      int64_t ld,
                                                                      OffsetLogits logit,
                                                                      const float* dloss,
                                                                      float* loss,
                                                                      float* lse,
                                                                      float* factor) {
  const int64_t n = blockIdx.x;
  ce_offset_row<Grad>(q, n, logits + n * ld, static_cast<int>(ld), logit, dloss, loss, lse, factor);
}

constexpr int kScaleWarps = kElementThreads / kWarp;

/// to[n] = factor[n] * from[n], zeros where the factor is 0; a warp a row. `to` may be `from`.
template <int N>
__global__ void __launch_bounds__(kElementThreads)
    scale_rows_kernel(const bf16* from, bf16* to, const float* factor, int64_t rows, int64_t cols) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kScaleWarps) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const float by = factor[row];
  for (int64_t c = threadIdx.x % kWarp * N; c < cols; c += kWarp * N) {
    float x[N];
    load_floats(from + row * cols + c, x);
#pragma unroll
    for (float& v : x) v = by == 0.0f ? 0.0f : by * v;
    store_floats(to + row * cols + c, x);
  }
}

void scale_rows(
    const Exec& exec, const void* from, void* to, const float* factor, int64_t rows, int64_t cols) {
  const bool packs = rows_of_16_bytes<bf16>(cols, {from, to});
  const auto kernel = packs ? scale_rows_kernel<kElementsOf16Bytes<bf16>> : scale_rows_kernel<1>;
  kernel<<<grid_for(rows, kScaleWarps), kElementThreads, 0, cuda_stream(exec)>>>(
      static_cast<const bf16*>(from), static_cast<bf16*>(to), factor, rows, cols);
}

template <typename To, typename From>
__global__ void convert_kernel(const From* from, To* to, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kElementThreads) + threadIdx.x;
  if (i < n) store_float(to + i, load_as_float(from + i));
}

/// w as `dtype`: itself, or a copy at `to`.
const void* weight_as(const Exec& exec, const ConstTensorView& w, DType dtype, void* to) {
  if (w.dtype() == dtype) return w.data;
  const int64_t n = w.elems();
  const unsigned blocks = grid_for(n, kElementThreads);
  if (dtype == DType::bf16) {
    convert_kernel<<<blocks, kElementThreads, 0, cuda_stream(exec)>>>(w.as<float>(),
                                                                      static_cast<bf16*>(to), n);
  } else {
    convert_kernel<<<blocks, kElementThreads, 0, cuda_stream(exec)>>>(w.as<bf16>(),
                                                                      static_cast<float*>(to), n);
  }
  return to;
}

template <bool Grad, typename T>
void launch_offset_rows(const Exec& exec,
                        const CeRows& q,
                        int64_t rows,
                        T* logits,
                        int64_t ld,
                        float cap,
                        const float* dloss,
                        float* loss,
                        float* lse,
                        float* factor) {
  offset_row_kernel<Grad><<<grid_for(rows, 1), kCeOffsetThreads, 0, cuda_stream(exec)>>>(
      q, logits, ld, OffsetLogits(cap), dloss, loss, lse, factor);
}

template <bool Grad, typename T>
void launch_rows(const Exec& exec,
                 const CeRows& q,
                 int64_t rows,
                 T* logits,
                 int64_t ld,
                 float cap,
                 const float* dloss,
                 float* loss,
                 float* lse) {
  if (cap == 0.0f) {
    row_kernel<Grad><<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(
        q, logits, ld, PlainLogit{}, dloss, loss, lse);
  } else {
    row_kernel<Grad><<<grid_for(rows, 1), kCeThreads, 0, cuda_stream(exec)>>>(
        q, logits, ld, CappedLogit<T>(cap), dloss, loss, lse);
  }
}

/// Both passes; dx empty: forward alone.
void run_chunks(const Exec& exec, const LinearCrossEntropyGrad& a) {
  const int64_t cols = a.w.shape().cols(), padded = a.w.shape()[0], total = a.targets.elems();
  const bool wants_grad = !a.dx.empty();
  const LinearCrossEntropyCudaScratch at(
      wants_grad ? LinearCrossEntropyPass::gradient : LinearCrossEntropyPass::forward, a.x.type,
      a.w.type, a.cap, a.chunk_rows);
  TL_CHECK(static_cast<int64_t>(exec.scratch.size()) >= at.bytes());
  std::byte* logits = exec.scratch.data();
  auto* factor = reinterpret_cast<float*>(logits + at.logits_bytes);
  std::byte* scaled_x = logits + at.logits_bytes + at.factor_bytes;
  const DType dtype = a.x.dtype();
  const void* w = weight_as(exec, a.w, dtype, scaled_x + at.x_bytes);
  const auto row_of_x = [&](const void* x, int64_t row) {
    return static_cast<const std::byte*>(x) + row * cols * size_of(dtype);
  };

  for (int64_t first = 0; first < total; first += at.chunk) {
    const int64_t rows = std::min(at.chunk, total - first);
    const std::byte* x = row_of_x(a.x.data, first);
    gemm_cuda(exec, {.form = GemmForm::nt,
                     .M = rows,
                     .N = padded,
                     .K = cols,
                     .a = {.data = x, .dtype = dtype, .ld = cols},
                     .b = {.data = w, .dtype = dtype, .ld = cols},
                     .c = {.data = logits, .dtype = at.logits, .ld = at.ld}});

    const CeRows q{.targets = a.targets.as<int32_t>() + first,
                   .weights = a.weights.empty() ? nullptr : a.weights.as<float>() + first,
                   .vocab = a.vocab,
                   .ignore_index = a.ignore_index};
    const float cap = static_cast<float>(a.cap);
    float *loss = a.loss.as<float>() + first, *lse = a.lse.as<float>() + first;
    if (!wants_grad) {
      auto* z = reinterpret_cast<float*>(logits);
      if (at.by_offset)
        launch_offset_rows<false>(exec, q, rows, z, at.ld, cap, nullptr, loss, lse, nullptr);
      else
        launch_rows<false>(exec, q, rows, z, at.ld, cap, nullptr, loss, lse);
      continue;
    }
    const float* dloss = a.dloss.as<float>() + first;
    if (at.by_offset) {
      launch_offset_rows<true>(exec, q, rows, reinterpret_cast<bf16*>(logits), at.ld, cap, dloss,
                               loss, lse, factor);
      scale_rows(exec, x, scaled_x, factor, rows, cols);
    } else {
      with_cuda_type(dtype, "linear_cross_entropy_grad", [&](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        launch_rows<true>(exec, q, rows, reinterpret_cast<T*>(logits), at.ld, cap, dloss, loss,
                          lse);
      });
    }

    // dw before dx: dx may be x.
    std::byte* dx = const_cast<std::byte*>(row_of_x(a.dx.data, first));
    if (!a.dw.empty())
      gemm_cuda(exec, {.form = GemmForm::tn,
                       .M = padded,
                       .N = cols,
                       .K = rows,
                       .a = {.data = logits, .dtype = dtype, .ld = at.ld},
                       .b = {.data = at.by_offset ? scaled_x : x, .dtype = dtype, .ld = cols},
                       .c = {.data = a.dw.data, .dtype = DType::f32, .ld = cols},
                       .accumulate = a.accumulate || first > 0});
    gemm_cuda(exec, {.form = GemmForm::nn,
                     .M = rows,
                     .N = cols,
                     .K = padded,
                     .a = {.data = logits, .dtype = dtype, .ld = at.ld},
                     .b = {.data = w, .dtype = dtype, .ld = cols},
                     .c = {.data = dx, .dtype = dtype, .ld = cols}});
    if (at.by_offset) scale_rows(exec, dx, dx, factor, rows, cols);
  }
  cuda::check_launch("linear_cross_entropy");
}

}  // namespace

void linear_cross_entropy_fwd_cuda(const Exec& exec, const LinearCrossEntropyFwd& a) {
  run_chunks(exec, {.x = a.x,
                    .w = a.w,
                    .targets = a.targets,
                    .dloss = {},
                    .weights = a.weights,
                    .loss = a.loss,
                    .lse = a.lse,
                    .dx = {},
                    .dw = {},
                    .vocab = a.vocab,
                    .ignore_index = a.ignore_index,
                    .cap = a.cap,
                    .chunk_rows = a.chunk_rows,
                    .accumulate = false});
}

void linear_cross_entropy_grad_cuda(const Exec& exec, const LinearCrossEntropyGrad& a) {
  run_chunks(exec, a);
}

}  // namespace tightloop
