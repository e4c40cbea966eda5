#pragma once

#include <type_traits>

#include "tightloop/ops/common/cuda_pack.cuh"

/// Rows taken by a warp or by a block, each lane with a few packs of the row in registers between
/// two passes over it.
namespace tightloop {

constexpr int kRowShapeThreads = 256;

/// Packs of a row that a lane keeps; 0: it reads them again.
constexpr int kFewPacks = 4, kManyPacks = 8;

/// Sum over the Lanes threads that share a row, a warp or a block, in all of them.
template <int Lanes>
__device__ float row_sum(float x) {
  if constexpr (Lanes == kWarp) {
    return warp_sum(x);
  } else {
    return block_sum<Lanes>(x);
  }
}

/// Calls fn with the constants N, Lanes, Packs that suit rows of `cols` elements of T; `packs`:
/// whether 16 bytes may be moved at once.
template <typename T, typename Fn>
void with_row_shape(int64_t cols, bool packs, Fn&& fn) {
  const auto with_lanes = [&](auto n) {
    constexpr int kN = decltype(n)::value;
    constexpr std::integral_constant<int, kWarp> kByWarp{};
    constexpr std::integral_constant<int, kRowShapeThreads> kByBlock{};
    constexpr std::integral_constant<int, kFewPacks> kKeepFew{};
    constexpr std::integral_constant<int, kManyPacks> kKeepMany{};
    constexpr std::integral_constant<int, 0> kKeepNone{};
    if (cols <= kWarp * kN * kFewPacks) return fn(n, kByWarp, kKeepFew);
    if (cols <= kWarp * kN * kManyPacks) return fn(n, kByWarp, kKeepMany);
    if (cols <= kRowShapeThreads * kN * kFewPacks) return fn(n, kByBlock, kKeepFew);
    fn(n, kByBlock, kKeepNone);
  };
  if (packs) return with_lanes(std::integral_constant<int, kElementsOf16Bytes<T>>{});
  with_lanes(std::integral_constant<int, 1>{});
}

}  // namespace tightloop
