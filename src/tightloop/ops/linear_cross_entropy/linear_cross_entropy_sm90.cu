#include "tightloop/ops/common/ce_row.cuh"
#include "tightloop/ops/common/gemm_sm90.cuh"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy_kernels.h"

namespace tightloop {
namespace {

/// The epilogue of SoftcapProduct.
template <bool Stores>
struct SumOfExponentials {
  static constexpr bool kReads = false, kStores = Stores;
  OffsetLogits logit;
  float* sums;
  int count, vocab, columns;  // rows; columns of logits; columns of sums

  struct Rows {
    const SumOfExponentials& of;
    int first, col;
    float sum[2];

    __device__ void make(int h, int c, float (&v)[4], const float (&)[4]) {
      of.logit.fractions(v);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float e = of.logit.exponential(v[i]);
        if (col + sm90::kCols > of.vocab && col + c + i / 2 * 8 + i % 2 >= of.vocab) e = 0.0f;
        sum[h] += e;
        v[i] = e * OffsetLogits::slope(v[i]);
      }
    }
    __device__ void finish() {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // The four lanes of a row.
        sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 1);
        sum[h] += __shfl_xor_sync(kFullWarp, sum[h], 2);
        const int64_t row = first + 8 * h;
        if (threadIdx.x % 4 == 0 && row < of.count)
          of.sums[row * of.columns + col / sm90::kCols] = sum[h];
      }
    }
  };
  __device__ Rows rows(int first, int col) const {
    return {*this, first, col, {0.0f, 0.0f}};
  }
};

Gemm product_of(const SoftcapProduct& args) {
  return {.form = GemmForm::nt,
          .M = args.rows,
          .N = args.padded,
          .K = args.columns,
          .a = {.data = args.x, .dtype = DType::bf16, .ld = args.columns},
          .b = {.data = args.w, .dtype = DType::bf16, .ld = args.columns},
          .c = {.data = args.f, .dtype = DType::bf16, .ld = args.ld}};
}

template <bool Stores>
void enqueue(const Exec& exec, const SoftcapProduct& args) {
  sm90::enqueue<GemmForm::nt>(
      exec, product_of(args), {},
      SumOfExponentials<Stores>{.logit = OffsetLogits(args.cap),
                                .sums = args.sums,
                                .count = static_cast<int>(args.rows),
                                .vocab = static_cast<int>(args.vocab),
                                .columns = static_cast<int>(columns_of_sums(args.padded))});
}

}  // namespace

bool softcap_product_sm90_takes(const SoftcapProduct& args) {
  return gemm_sm90_takes(product_of(args), {});
}

void softcap_product_sm90(const Exec& exec, const SoftcapProduct& args) {
  if (args.f == nullptr) {
    enqueue<false>(exec, args);
  } else {
    enqueue<true>(exec, args);
  }
}

void row_scaled_product_sm90(const Exec& exec, const Gemm& g, const float* factors) {
  sm90::enqueue<GemmForm::nn>(exec, g, {},
                              sm90::ScaleRows{.factors = factors, .count = static_cast<int>(g.M)});
}

}  // namespace tightloop
