#pragma once

#include <initializer_list>

#include "tightloop/ops/common/cuda_kernel.cuh"

/// Arrays read and written up to 16 bytes at a time.
namespace tightloop {

template <typename T>
constexpr int kElementsOf16Bytes = 16 / sizeof(T);

/// Whether every array (null: not given) starts at a multiple of 16 bytes.
inline bool start_at_16_bytes(std::initializer_list<const void*> arrays) {
  bool fit = true;
  for (const void* p : arrays) fit = fit && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return fit;
}

/// Whether 16 bytes may be moved at once when rows start every `width` elements of every array
/// (null: not given).
template <typename T>
bool rows_of_16_bytes(int64_t width, std::initializer_list<const void*> arrays) {
  return width % kElementsOf16Bytes<T> == 0 && start_at_16_bytes(arrays);
}

/// N neighbours as they are stored; their place in memory is aligned to their size.
template <typename T, int N>
struct Stored {
  Pack<T, N> pack;
  __device__ void load(const T* p) { pack = *reinterpret_cast<const Pack<T, N>*>(p); }
  __device__ void store(T* p) const { *reinterpret_cast<Pack<T, N>*>(p) = pack; }
  __device__ float at(int j) const { return load_as_float(pack.at + j); }
  __device__ void set(const float (&x)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) store_float(pack.at + j, x[j]);
  }
  /// The same number by another instruction where T is bf16, so that the compiler does not hold
  /// floats in registers from one use to the next beside what they are made of.
  __device__ float again(int j) const {
    return at(j);
  }
};
/// Two bf16 share a register; a Pack takes one for each.
template <int N>
requires(N % 2 == 0) struct Stored<bf16, N> {
  Pack<uint32_t, N / 2> pairs;
  __device__ void load(const bf16* p) {
    pairs = *reinterpret_cast<const Pack<uint32_t, N / 2>*>(p);
  }
  __device__ void store(bf16* p) const { *reinterpret_cast<Pack<uint32_t, N / 2>*>(p) = pairs; }
  __device__ float at(int j) const {
    const uint32_t pair = pairs.at[j / 2];
    return __uint_as_float(j % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
  }
  __device__ void set(const float (&x)[N]) {
#pragma unroll
    for (int j = 0; j < N; j += 2) pairs.at[j / 2] = pack_bf16(x[j], x[j + 1]);
  }
  __device__ float again(int j) const {
    return __uint_as_float(__byte_perm(pairs.at[j / 2], 0, j % 2 == 0 ? 0x1044 : 0x3244));
  }
};

template <int N, typename T>
__device__ inline void load_floats(const T* p, float (&x)[N]) {
  Stored<T, N> stored;
  stored.load(p);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = stored.at(j);
}

template <int N, typename T>
__device__ inline void store_floats(T* p, const float (&x)[N]) {
  Stored<T, N> stored;
  stored.set(x);
  stored.store(p);
}

/// What is read back after x is stored as T.
template <typename T>
__device__ inline float as_stored(float x) {
  T stored;
  store_float(&stored, x);
  return load_as_float(&stored);
}

}  // namespace tightloop
