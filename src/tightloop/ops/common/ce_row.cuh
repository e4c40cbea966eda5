#pragma once

#include <cfloat>
#include <type_traits>

#include "tightloop/ops/common/cuda_pack.cuh"

/// Cross-entropy of one row of logits by a block of threads: shared by cross_entropy and
/// linear_cross_entropy.
namespace tightloop {

constexpr int kCeThreads = 512;

/// 2^x and e^x by the special function unit: relative error 2^-22, growing with |x| as the float32
/// product x * log2(e) does; 0 below 2^-126.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float exp_fast(float x) {
  return exp2_fast(x * 1.44269504f);
}

/// e^x of logits stored as T: to the last bits where they are f32, else fast.
template <typename T>
__device__ inline float exp_of(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return exp_fast(x);
  }
}

/// How a stored logit enters the loss: as it is, or softcapped.
struct PlainLogit {
  __device__ float value(float z) const { return z; }
  __device__ float slope(float) const { return 1.0f; }  // d value / d z at this value
};
/// cap * tanh(z / cap); of logits that are not f32 with an absolute error of 3e-7 * cap.
template <typename T>
struct CappedLogit {
  float cap, inverse, rate;
  explicit CappedLogit(float c) : cap(c), inverse(1.0f / c), rate(2.88539008f / c) {}
  __device__ float value(float z) const {
    if constexpr (std::is_same_v<T, float>) return cap * tanhf(z * inverse);
    // 1 - 2 / (1 + e^2u), u = z / cap
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(z * rate));
  }
  __device__ float slope(float y) const {
    const float u = y * inverse;
    return 1.0f - u * u;
  }
};

/// What the rows of a launch have in common.
struct CeRows {
  const int32_t* targets;
  const float* weights;  // null for 1
  int64_t vocab;
  int64_t ignore_index;

  __device__ float weight(int64_t n) const { return weights == nullptr ? 1.0f : weights[n]; }
};

/// log(sum over c < vocab of exp(logit)), in every thread; NaN when a logit is. `x` holds whole
/// packs of N elements, also where vocab ends inside one.
template <int N, typename T, typename Logit>
__device__ float ce_lse(const T* x, int64_t vocab, const Logit& logit) {
  float top = -FLT_MAX, sum = 0.0f;
  for (int64_t c = int64_t{threadIdx.x} * N; c < vocab; c += kCeThreads * N) {
    float v[N], most = top;
    load_floats<N>(x + c, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      v[j] = c + j < vocab ? logit.value(v[j]) : -FLT_MAX;
      most = fmaxf(most, v[j]);
    }
    if (most > top) {
      sum *= exp_of<T>(top - most);
      top = most;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum += c + j < vocab ? exp_of<T>(v[j] - top) : 0.0f;
  }
  const float most = block_max<kCeThreads>(top);
  return most + logf(block_sum<kCeThreads>(sum * exp_of<T>(top - most)));
}

/// Row n of the forward pass: loss and lse; lse is returned in every thread. A target that is
/// neither in 0..vocab-1 nor ignored gives a loss of NaN.
template <int N, typename T, typename Logit>
__device__ float ce_loss_row(
    const CeRows& q, int64_t n, const T* x, const Logit& logit, float* loss, float* lse) {
  const int64_t target = q.targets[n];
  float at_target = __int_as_float(0x7fffffff);
  if (threadIdx.x == 0 && target >= 0 && target < q.vocab)
    at_target = logit.value(load_as_float(x + target));
  const float row_lse = ce_lse<N>(x, q.vocab, logit);  // after its barriers x may be overwritten
  if (threadIdx.x == 0) {
    lse[n] = row_lse;
    loss[n] = target == q.ignore_index ? 0.0f : q.weight(n) * (row_lse - at_target);
  }
  return row_lse;
}

/// Row n of the backward pass: d[c] = g * (softmax[c] - [c = target]) * slope for c < vocab, 0 up
/// to cols and in ignored rows. d may be x. cols is a multiple of N.
template <int N, typename T, typename Logit>
__device__ void ce_grad_row(const CeRows& q,
                            int64_t n,
                            const T* x,
                            T* d,
                            int64_t cols,
                            const Logit& logit,
                            float lse,
                            float dloss) {
  const int64_t target = q.targets[n];
  const int64_t vocab = target == q.ignore_index ? 0 : q.vocab;
  const float g = dloss * q.weight(n);
  for (int64_t c = int64_t{threadIdx.x} * N; c < cols; c += kCeThreads * N) {
    float v[N];
    load_floats<N>(x + c, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float y = logit.value(v[j]), p = exp_of<T>(y - lse);
      const float gradient = g * (p - (c + j == target ? 1.0f : 0.0f)) * logit.slope(y);
      v[j] = c + j < vocab ? gradient : 0.0f;
    }
    store_floats<N>(d + c, v);
  }
}

}  // namespace tightloop
