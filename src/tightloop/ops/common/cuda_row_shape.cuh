#pragma once

#include <type_traits>

#include "tightloop/ops/common/cuda_pack.cuh"

/// Rows taken by a warp or by a block, each lane with a few packs of the row in registers between
/// two passes over it.
namespace tightloop {

constexpr int kRowShapeThreads = 256;

/// Most packs of a row that a lane of a block or of a warp keeps; 0: it reads them again.
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
/// whether 16 bytes may be moved at once. Packs beyond what the row needs would cost registers, so
/// rows of 16-byte packs get 3, 5 and 6 too, and in a block 2.
template <typename T, typename Fn>
void with_row_shape(int64_t cols, bool packs, Fn&& fn) {
  const auto with_lanes = [&](auto n) {
    constexpr int kN = decltype(n)::value;
    constexpr std::integral_constant<int, kWarp> kByWarp{};
    constexpr std::integral_constant<int, kRowShapeThreads> kByBlock{};
    const auto in_warp = [&](auto kept) { return cols <= kWarp * kN * decltype(kept)::value; };
    constexpr std::integral_constant<int, 2> kKeep2{};
    constexpr std::integral_constant<int, 3> kKeep3{};
    constexpr std::integral_constant<int, kFewPacks> kKeepFew{};
    constexpr std::integral_constant<int, 5> kKeep5{};
    constexpr std::integral_constant<int, 6> kKeep6{};
    constexpr std::integral_constant<int, kManyPacks> kKeepMany{};
    constexpr std::integral_constant<int, 0> kKeepNone{};
    if constexpr (kN > 1) {
      if (in_warp(kKeep3)) return fn(n, kByWarp, kKeep3);
    }
    if (in_warp(kKeepFew)) return fn(n, kByWarp, kKeepFew);
    if constexpr (kN > 1) {
      if (in_warp(kKeep5)) return fn(n, kByWarp, kKeep5);
      if (in_warp(kKeep6)) return fn(n, kByWarp, kKeep6);
    }
    if (in_warp(kKeepMany)) return fn(n, kByWarp, kKeepMany);
    if constexpr (kN > 1) {
      if (cols <= kRowShapeThreads * kN * 2) return fn(n, kByBlock, kKeep2);
    }
    if (cols <= kRowShapeThreads * kN * kFewPacks) return fn(n, kByBlock, kKeepFew);
    fn(n, kByBlock, kKeepNone);
  };
  if (packs) return with_lanes(std::integral_constant<int, kElementsOf16Bytes<T>>{});
  with_lanes(std::integral_constant<int, 1>{});
}

}  // namespace tightloop
