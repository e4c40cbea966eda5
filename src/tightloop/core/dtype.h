#pragma once

#include <cstdint>
#include <string_view>

namespace tightloop {

/// Element types a tensor can be stored in.
enum class DType : uint8_t { f64, f32, bf16, i64, i32, u16, u8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::u16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr bool is_float(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
}

std::string_view name_of(DType dtype);
/// Error{usage} when the name is none of f64 f32 bf16 i64 i32 u16 u8.
DType parse_dtype(std::string_view name);

/// bfloat16 storage: the upper half of a float32. Arithmetic happens in float32.
struct bf16 {
  uint16_t bits = 0;
};

inline __attribute__((always_inline)) float to_float(bf16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}

/// Round to nearest, ties to even; NaN stays NaN.
inline __attribute__((always_inline)) bf16 to_bf16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u), quiet = u | 0x400000u;
  return bf16{static_cast<uint16_t>((x != x ? quiet : rounded) >> 16)};
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

}  // namespace tightloop
