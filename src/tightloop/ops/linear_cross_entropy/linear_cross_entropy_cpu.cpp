#include <algorithm>

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/ce_row.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"

namespace tightloop {
namespace {

TL_CLONES void softcap_row(float* x, int64_t cols, float cap) {
  const float inverse = 1.0f / cap;
  for (int64_t c = 0; c < cols; ++c) x[c] = cap * tanh_approx(x[c] * inverse);
}

TL_CLONES float lse_of(const float* x, int64_t cols) {
  return lse_row(x, cols);
}

/// Overwrites a row of uncapped logits with their gradient.
TL_CLONES void grad_row(float* x, int64_t vocab, int64_t cols, int64_t target, float lse, float g) {
  ce_grad_row(x, x, vocab, cols, target, lse, g);
}

/// The same through the softcap, y being the capped logits.
TL_CLONES void grad_row_capped(
    float* y, int64_t vocab, int64_t cols, int64_t target, float lse, float g, float cap) {
  const float inverse = 1.0f / cap;
  const float at_target = y[target];
  for (int64_t c = 0; c < vocab; ++c) {
    const float u = y[c] * inverse;
    y[c] = g * exp_nonpositive(y[c] - lse) * (1.0f - u * u);
  }
  const float u = at_target * inverse;
  y[target] = (g * exp_nonpositive(at_target - lse) - g) * (1.0f - u * u);
  for (int64_t c = vocab; c < cols; ++c) y[c] = 0.0f;
}

// The three matrix products of a chunk of `rows` rows that starts at row `first`. Null data is
// enough to ask for scratch.

Gemm logits_product(const ConstTensorView& x, const ConstTensorView& w, int64_t rows) {
  const int64_t cols = w.shape().cols(), vocab = w.shape()[0];
  return {.form = GemmForm::nt,
          .M = rows,
          .N = vocab,
          .K = cols,
          .a = {.data = x.data, .dtype = DType::f32, .ld = cols},
          .b = {.data = w.data, .dtype = w.dtype(), .ld = cols},
          .c = {.data = nullptr, .dtype = DType::f32, .ld = vocab}};
}

Gemm dx_product(const ConstTensorView& w, int64_t rows) {
  const int64_t cols = w.shape().cols(), vocab = w.shape()[0];
  return {.form = GemmForm::nn,
          .M = rows,
          .N = cols,
          .K = vocab,
          .a = {.data = nullptr, .dtype = DType::f32, .ld = vocab},
          .b = {.data = w.data, .dtype = w.dtype(), .ld = cols},
          .c = {.data = nullptr, .dtype = DType::f32, .ld = cols}};
}

Gemm dw_product(const ConstTensorView& w, int64_t rows) {
  const int64_t cols = w.shape().cols(), vocab = w.shape()[0];
  return {.form = GemmForm::tn,
          .M = vocab,
          .N = cols,
          .K = rows,
          .a = {.data = nullptr, .dtype = DType::f32, .ld = vocab},
          .b = {.data = nullptr, .dtype = DType::f32, .ld = cols},
          .c = {.data = nullptr, .dtype = DType::f32, .ld = cols}};
}

int64_t logits_bytes(int64_t rows, int64_t padded_vocab) {
  return (rows * padded_vocab * int64_t{sizeof(float)} + 63) / 64 * 64;
}

/// Both passes; dx empty: forward alone.
void run_chunks(const LinearCrossEntropyGrad& a, std::span<std::byte> scratch) {
  const int64_t cols = a.w.shape().cols(), padded = a.w.shape()[0], total = a.targets.elems();
  const int64_t chunk = std::min(a.chunk_rows, total);
  const bool wants_grad = !a.dx.empty();
  const float cap = static_cast<float>(a.cap);
  const float* x = a.x.as<float>();
  const int32_t* targets = a.targets.as<int32_t>();
  const float* weights = a.weights.empty() ? nullptr : a.weights.as<float>();
  const float* dloss = wants_grad ? a.dloss.as<float>() : nullptr;
  float *loss = a.loss.as<float>(), *lse = a.lse.as<float>();

  const auto offset = static_cast<size_t>(logits_bytes(chunk, padded));
  TL_CHECK(scratch.size() >= offset);
  float* logits = reinterpret_cast<float*>(scratch.data());
  const std::span<std::byte> rest = scratch.subspan(offset);

  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t rows = std::min(chunk, total - first);
    Gemm product = logits_product(a.x, a.w, rows);
    product.a.data = x + first * cols;
    product.c.data = logits;
    gemm(product, rest);

    parallel_for(rows, grain_rows(padded), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t n = first + r, target = targets[n];
        const bool ignored = target == a.ignore_index;
        float* row = logits + r * padded;
        if (cap != 0.0f) softcap_row(row, a.vocab, cap);
        lse[n] = lse_of(row, a.vocab);
        const float weight = weights == nullptr ? 1.0f : weights[n];
        loss[n] = ignored ? 0.0f : weight * (lse[n] - row[target]);
        if (!wants_grad) continue;
        const float g = dloss[n] * weight;
        if (ignored) {
          std::fill(row, row + padded, 0.0f);
        } else if (cap != 0.0f) {
          grad_row_capped(row, a.vocab, padded, target, lse[n], g, cap);
        } else {
          grad_row(row, a.vocab, padded, target, lse[n], g);
        }
      }
    });
    if (!wants_grad) continue;

    // dw before dx: dx may be x.
    if (!a.dw.empty()) {
      product = dw_product(a.w, rows);
      product.a.data = logits;
      product.b.data = x + first * cols;
      product.c.data = a.dw.data;
      product.accumulate = a.accumulate || first > 0;
      gemm(product, rest);
    }
    product = dx_product(a.w, rows);
    product.a.data = logits;
    product.c.data = a.dx.as<float>() + first * cols;
    gemm(product, rest);
  }
}

}  // namespace

int64_t linear_cross_entropy_scratch_bytes(LinearCrossEntropyPass pass,
                                           const Type& x,
                                           const Type& w,
                                           int64_t chunk_rows) {
  const int64_t total = x.shape.rows(), chunk = std::min(chunk_rows, total);
  const ConstTensorView xv(nullptr, x), wv(nullptr, w);
  size_t most = 0;
  for (const int64_t rows : {chunk, total % chunk}) {
    if (rows == 0) continue;
    most = std::max(most, gemm_scratch_bytes(logits_product(xv, wv, rows)));
    if (pass == LinearCrossEntropyPass::forward) continue;
    most = std::max(most, gemm_scratch_bytes(dw_product(wv, rows)));
    most = std::max(most, gemm_scratch_bytes(dx_product(wv, rows)));
  }
  return logits_bytes(chunk, w.shape[0]) + static_cast<int64_t>(most);
}

void linear_cross_entropy_fwd_cpu(const LinearCrossEntropyFwd& a, std::span<std::byte> scratch) {
  run_chunks({.x = a.x,
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
              .accumulate = false},
             scratch);
}

void linear_cross_entropy_grad_cpu(const LinearCrossEntropyGrad& a, std::span<std::byte> scratch) {
  run_chunks(a, scratch);
}

}  // namespace tightloop
