#include <algorithm>

#include "tightloop/ops/common/ce_row.cuh"
#include "tightloop/ops/common/gemm_sm90.h"
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

/// What is left of a row after a SoftcapProduct, a warp a row: loss and lse; with a gradient the
/// target's entry of f, the factor, and x times the factor at scaled_x. The target's logit is
/// summed anew, in float32. w (vocab or more, cols), sums (rows, count).
template <bool Grad, int N>
__global__ void __launch_bounds__(kElementThreads) finish_rows_kernel(CeRows q,
                                                                      OffsetLogits logit,
                                                                      const float* sums,
                                                                      int64_t count,
                                                                      const bf16* x,
                                                                      const bf16* w,
                                                                      bf16* f,
                                                                      int64_t ld,
                                                                      int64_t rows,
                                                                      int64_t cols,
                                                                      const float* dloss,
                                                                      float* loss,
                                                                      float* lse,
                                                                      float* factor,
                                                                      bf16* scaled_x) {
  const int64_t n = blockIdx.x * static_cast<int64_t>(kScaleWarps) + threadIdx.x / kWarp;
  if (n >= rows) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t target = q.targets[n];
  const bool ignored = target == q.ignore_index, known = target >= 0 && target < q.vocab;
  float sum = 0.0f, z = 0.0f;
  for (int64_t i = lane; i < count; i += kWarp) sum += sums[n * count + i];
  if (known) {
    for (int64_t c = lane * N; c < cols; c += kWarp * N) {
      float of_x[N], of_w[N];
      load_floats(x + n * cols + c, of_x);
      load_floats(w + target * cols + c, of_w);
#pragma unroll
      for (int i = 0; i < N; ++i) z += of_x[i] * of_w[i];
    }
  }
  sum = warp_sum(sum);
  z = known ? warp_sum(z) : __int_as_float(0x7fffffff);
  const float r = logit.fraction(z), log_sum = logf(sum);
  if (lane == 0) {
    lse[n] = logit.cap + log_sum;
    loss[n] = ignored ? 0.0f : q.weight(n) * (log_sum + 2.0f * logit.cap * r);
  }
  if constexpr (Grad) {
    float by = ignored ? 0.0f : 4.0f * dloss[n] * q.weight(n) / sum;
    if (known && !ignored) {
      const float entry = (logit.exponential(r) - sum) * OffsetLogits::slope(r);
      if (lane == 0) store_float(f + n * ld + target, entry);
      by *= factor_of_rounded<bf16>(entry);
    }
    if (lane == 0) factor[n] = by;
    for (int64_t c = lane * N; c < cols; c += kWarp * N) {
      float of_x[N];
      load_floats(x + n * cols + c, of_x);
#pragma unroll
      for (float& v : of_x) v = by == 0.0f ? 0.0f : by * v;
      store_floats(scaled_x + n * cols + c, of_x);
    }
  }
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

/// Rows of the operation, and where what belongs to them lies. Without a gradient dloss is null.
struct Chunk {
  CeRows q;
  int64_t rows, cols, padded, ld;
  DType dtype;
  float cap;
  const std::byte* x;
  const void* w;
  const float* dloss;
  float *loss, *lse;
  std::byte* logits;
  DType logits_dtype;
  float* factor;
  std::byte* scaled_x;
  float* sums;
};

SoftcapProduct product_of(const Chunk& c) {
  return {.x = c.x,
          .w = c.w,
          .f = c.dloss == nullptr ? nullptr : c.logits,
          .sums = c.sums,
          .rows = c.rows,
          .columns = c.cols,
          .padded = c.padded,
          .ld = c.ld,
          .vocab = c.q.vocab,
          .cap = c.cap};
}

/// Losses, and in the logits' place their gradient but for the factors: logits are never stored.
void in_one_pass(const Exec& exec, const Chunk& c) {
  softcap_product_sm90(exec, product_of(c));
  constexpr int kPack = kElementsOf16Bytes<bf16>;  // softcap_product_sm90_takes() rows of these
  const auto kernel =
      c.dloss == nullptr ? finish_rows_kernel<false, kPack> : finish_rows_kernel<true, kPack>;
  kernel<<<grid_for(c.rows, kScaleWarps), kElementThreads, 0, cuda_stream(exec)>>>(
      c.q, OffsetLogits(c.cap), c.sums, columns_of_sums(c.padded),
      reinterpret_cast<const bf16*>(c.x), static_cast<const bf16*>(c.w),
      reinterpret_cast<bf16*>(c.logits), c.ld, c.rows, c.cols, c.dloss, c.loss, c.lse, c.factor,
      reinterpret_cast<bf16*>(c.scaled_x));
}

/// The same from stored logits; with by_offset the factors are left out, else inside.
void from_logits(const Exec& exec, const Chunk& c, bool by_offset) {
  gemm_cuda(exec, {.form = GemmForm::nt,
                   .M = c.rows,
                   .N = c.padded,
                   .K = c.cols,
                   .a = {.data = c.x, .dtype = c.dtype, .ld = c.cols},
                   .b = {.data = c.w, .dtype = c.dtype, .ld = c.cols},
                   .c = {.data = c.logits, .dtype = c.logits_dtype, .ld = c.ld}});
  if (c.dloss == nullptr) {
    auto* z = reinterpret_cast<float*>(c.logits);
    if (by_offset)
      launch_offset_rows<false>(exec, c.q, c.rows, z, c.ld, c.cap, nullptr, c.loss, c.lse, nullptr);
    else
      launch_rows<false>(exec, c.q, c.rows, z, c.ld, c.cap, nullptr, c.loss, c.lse);
  } else if (by_offset) {
    launch_offset_rows<true>(exec, c.q, c.rows, reinterpret_cast<bf16*>(c.logits), c.ld, c.cap,
                             c.dloss, c.loss, c.lse, c.factor);
    scale_rows(exec, c.x, c.scaled_x, c.factor, c.rows, c.cols);
  } else {
    with_cuda_type(c.dtype, "linear_cross_entropy_grad", [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      launch_rows<true>(exec, c.q, c.rows, reinterpret_cast<T*>(c.logits), c.ld, c.cap, c.dloss,
                        c.loss, c.lse);
    });
  }
}

/// dx = dlogits w.
void input_gradient(const Exec& exec, const Chunk& c, bool by_offset, std::byte* dx) {
  const Gemm g{.form = GemmForm::nn,
               .M = c.rows,
               .N = c.cols,
               .K = c.padded,
               .a = {.data = c.logits, .dtype = c.dtype, .ld = c.ld},
               .b = {.data = c.w, .dtype = c.dtype, .ld = c.cols},
               .c = {.data = dx, .dtype = c.dtype, .ld = c.cols}};
  if (by_offset && gemm_sm90_takes(g, {})) return row_scaled_product_sm90(exec, g, c.factor);
  gemm_cuda(exec, g);
  if (by_offset) scale_rows(exec, dx, dx, c.factor, c.rows, c.cols);
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
  std::byte* scaled_x = logits + at.logits_bytes + at.factor_bytes;
  const DType dtype = a.x.dtype();
  const void* w = weight_as(exec, a.w, dtype, scaled_x + at.x_bytes);
  const auto row_of_x = [&](const void* x, int64_t row) {
    return static_cast<const std::byte*>(x) + row * cols * size_of(dtype);
  };

  for (int64_t first = 0; first < total; first += at.chunk) {
    const Chunk c{.q = {.targets = a.targets.as<int32_t>() + first,
                        .weights = a.weights.empty() ? nullptr : a.weights.as<float>() + first,
                        .vocab = a.vocab,
                        .ignore_index = a.ignore_index},
                  .rows = std::min(at.chunk, total - first),
                  .cols = cols,
                  .padded = padded,
                  .ld = at.ld,
                  .dtype = dtype,
                  .cap = static_cast<float>(a.cap),
                  .x = row_of_x(a.x.data, first),
                  .w = w,
                  .dloss = wants_grad ? a.dloss.as<float>() + first : nullptr,
                  .loss = a.loss.as<float>() + first,
                  .lse = a.lse.as<float>() + first,
                  .logits = logits,
                  .logits_dtype = at.logits,
                  .factor = reinterpret_cast<float*>(logits + at.logits_bytes),
                  .scaled_x = scaled_x,
                  .sums = reinterpret_cast<float*>(scaled_x + at.x_bytes + at.w_bytes)};
    if (at.by_offset && softcap_product_sm90_takes(product_of(c))) {
      in_one_pass(exec, c);
    } else {
      from_logits(exec, c, at.by_offset);
    }
    if (!wants_grad) continue;
    // dw before dx: dx may be x.
    if (!a.dw.empty())
      gemm_cuda(exec, {.form = GemmForm::tn,
                       .M = padded,
                       .N = cols,
                       .K = c.rows,
                       .a = {.data = logits, .dtype = dtype, .ld = at.ld},
                       .b = {.data = at.by_offset ? scaled_x : c.x, .dtype = dtype, .ld = cols},
                       .c = {.data = a.dw.data, .dtype = DType::f32, .ld = cols},
                       .accumulate = a.accumulate || first > 0});
    input_gradient(exec, c, at.by_offset, const_cast<std::byte*>(row_of_x(a.dx.data, first)));
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
