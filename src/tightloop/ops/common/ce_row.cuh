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

constexpr int kCeOffsetThreads = 256;
constexpr int kCeAhead = 4;  // packs of a row that a thread has on their way

/// Softcapped logits y = cap tanh(z / cap) stay below the cap, so e^(y - cap) needs no maximum: one
/// pass over a row finds its sum S and what the gradient is made of. With r = 1 / (1 + e^(2z/cap)):
///   y = cap - 2 cap r,   E = e^(y - cap) = e^(-2 cap r),   dy/dz = 4 r (1 - r),
///   lse = cap + ln S,    dloss/dz = (g / S) (E - S [target]) dy/dz.
/// For caps up to kMostOffsetCap, where E is at least 2^-87. Absolute error of y: 1e-6 * cap.
struct OffsetLogits {
  float cap;
  float rate;  // e^(2z/cap) = 2^(rate z)
  float fall;  // E = 2^(fall r)

  explicit OffsetLogits(float c) : cap(c), rate(2.88539008f / c), fall(-2.88539008f * c) {}

  /// 1 + e^(2z/cap), at most 2^30 + 1: from there on tanh is 1. NaN stays.
  __device__ float denominator(float z) const {
    float exponent;
    asm("min.NaN.f32 %0, %1, 0f41f00000;" : "=f"(exponent) : "f"(z * rate));
    return 1.0f + exp2_fast(exponent);
  }
  static __device__ float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  __device__ float fraction(float z) const { return inverse(denominator(z)); }
  /// r of four logits with one division, as the special function unit is what binds.
  __device__ void fractions(float (&z)[4]) const {
#pragma unroll
    for (float& v : z) v = denominator(v);
    const float ab = z[0] * z[1], cd = z[2] * z[3], rest = inverse(ab * cd);
    const float of_ab = cd * rest, of_cd = ab * rest;
    const float a = z[0], c = z[2];
    z[0] = z[1] * of_ab, z[1] = a * of_ab;
    z[2] = z[3] * of_cd, z[3] = c * of_cd;
  }
  __device__ float exponential(float r) const {
    return exp2_fast(fall * r);
  }
  /// A quarter of dy/dz.
  static __device__ float slope(float r) {
    return fmaf(-r, r, r);
  }
};

/// What makes the target's entry of a row exact, times the row's factor: the entry is the largest
/// of its row, and what rounding it to T takes away would be lost from the gradient. The others
/// then err together, by at most half a unit of T.
template <typename T>
__device__ float factor_of_rounded(float entry) {
  const float stored = as_stored<T>(entry);
  return stored == 0.0f ? 1.0f : entry / stored;
}

/// Row n of both passes by a block of kCeOffsetThreads threads. x holds whole packs up to cols.
/// With Grad it is overwritten by (E - S [target]) dy/dz / 4, zeros from vocab on and in ignored
/// rows, and factor[n] = 4 g / S (factor_of_rounded() included) is what remains to be multiplied
/// with.
template <bool Grad, typename T>
__device__ void ce_offset_row(const CeRows& q,
                              int64_t n,
                              T* x,
                              int cols,
                              const OffsetLogits& logit,
                              const float* dloss,
                              float* loss,
                              float* lse,
                              float* factor) {
  constexpr int N = kElementsOf16Bytes<T>, kStep = kCeOffsetThreads * N;
  const int thread = static_cast<int>(threadIdx.x), vocab = static_cast<int>(q.vocab);
  const int whole = vocab / N * N;  // columns in packs without padding
  const int64_t target = q.targets[n];
  const bool ignored = target == q.ignore_index, known = target >= 0 && target < q.vocab;

  Stored<T, N> ahead[kCeAhead];
#pragma unroll
  for (int k = 0; k < kCeAhead; ++k) {
    const int c = thread * N + k * kStep;
    if (c < whole) ahead[k].load(x + c);
  }
  float z_target = __int_as_float(0x7fffffff);
  if (thread == 0 && known) z_target = load_as_float(x + target);
  if constexpr (Grad) __syncthreads();  // before the target is overwritten

  float sum = 0.0f;
  for (int first = thread * N; first < whole; first += kCeAhead * kStep) {
#pragma unroll
    for (int k = 0; k < kCeAhead; ++k) {
      const int c = first + k * kStep;
      if (c >= whole) break;
      float f[N];
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        float r[4] = {ahead[k].at(j), ahead[k].at(j + 1), ahead[k].at(j + 2), ahead[k].at(j + 3)};
        logit.fractions(r);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float e = logit.exponential(r[i]);
          sum += e;
          f[j + i] = e * OffsetLogits::slope(r[i]);
        }
      }
      if constexpr (Grad) store_floats<N>(x + c, f);
      if (c + kCeAhead * kStep < whole) ahead[k].load(x + c + kCeAhead * kStep);
    }
  }
  for (int c = whole + thread; c < (Grad ? cols : vocab); c += kCeOffsetThreads) {
    const float r = logit.fraction(c < vocab ? load_as_float(x + c) : 0.0f);
    const float e = c < vocab ? logit.exponential(r) : 0.0f;
    sum += e;
    if constexpr (Grad) store_float(x + c, e * OffsetLogits::slope(r));
  }
  sum = block_sum<kCeOffsetThreads>(sum);  // after its barriers the row is complete
  if (thread == 0) {
    const float r = logit.fraction(z_target), log_sum = logf(sum);
    lse[n] = logit.cap + log_sum;
    loss[n] = ignored ? 0.0f : q.weight(n) * (log_sum + 2.0f * logit.cap * r);
    if constexpr (Grad) {
      float by = ignored ? 0.0f : 4.0f * dloss[n] * q.weight(n) / sum;
      if (known && !ignored) {
        const float entry = (logit.exponential(r) - sum) * OffsetLogits::slope(r);
        store_float(x + target, entry);
        by *= factor_of_rounded<T>(entry);
      }
      factor[n] = by;
    }
  }
  if constexpr (Grad) {
    for (int c = thread; ignored && c < cols; c += kCeOffsetThreads) store_float(x + c, 0.0f);
  }
}

}  // namespace tightloop
