#pragma once

#include <initializer_list>

#include "tightloop/ops/common/cuda_kernel.cuh"

/// Arrays read and written 16 bytes at a time.
namespace tightloop {

template <typename T>
constexpr int kElementsOf16Bytes = 16 / sizeof(T);

/// Whether 16 bytes may be moved at once when rows start every `width` elements of every array
/// (null: not given).
template <typename T>
bool rows_of_16_bytes(int64_t width, std::initializer_list<const void*> arrays) {
  bool fit = width % kElementsOf16Bytes<T> == 0;
  for (const void* p : arrays) fit = fit && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return fit;
}

/// N neighbours at p, which is aligned to their size.
template <int N, typename T>
__device__ inline void load_floats(const T* p, float (&x)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = load_as_float(pack.at + j);
}

template <int N, typename T>
__device__ inline void store_floats(T* p, const float (&x)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) store_float(pack.at + j, x[j]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

/// What is read back after x is stored as T.
template <typename T>
__device__ inline float as_stored(float x) {
  T stored;
  store_float(&stored, x);
  return load_as_float(&stored);
}

}  // namespace tightloop
