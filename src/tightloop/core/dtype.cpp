#include "tightloop/core/dtype.h"

#include "tightloop/core/error.h"

namespace tightloop {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u16:
      return "u16";
    case DType::u8:
      return "u8";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (DType dtype :
       {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u16, DType::u8}) {
    if (name_of(dtype) == name) return dtype;
  }
  fail(ErrorKind::usage, "unknown dtype '{}': expected f64, f32, bf16, i64, i32, u16 or u8", name);
}

}  // namespace tightloop
