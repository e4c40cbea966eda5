#pragma once

#include <cstdint>
#include <optional>

#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/op_entry.h"

/// What rotary embedding and the operations fused with it share.
namespace tightloop {

/// Rotates one head of width 2 * half by one table row (cosines, then sines); y may be x. `sign` -1
/// rotates back.
template <typename T>
TL_INLINE void rotate_head(const T* x, const T* cos_sin, T* y, int64_t half, T sign) {
  TL_IVDEP
  for (int64_t j = 0; j < half; ++j) {
    const T a = x[j], b = x[half + j];
    const T c = cos_sin[j], s = sign * cos_sin[half + j];
    y[j] = a * c + b * s;
    y[half + j] = b * c - a * s;
  }
}

/// Checks x (B, T, H, D), table (S, D) with S >= T, and pos, a scalar, empty for none.
void expect_rotary(std::string_view op,
                   const Type& x,
                   const Type& table,
                   const std::optional<Type>& pos);

/// The table row of the first token. Error{usage} when pos + T rows are not in the table.
int64_t rotary_position(std::string_view op,
                        const ConstTensorView& pos,
                        const ConstTensorView& table,
                        int64_t tokens);

}  // namespace tightloop
