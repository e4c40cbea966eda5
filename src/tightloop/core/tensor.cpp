#include "tightloop/core/tensor.h"

namespace tightloop {

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + ")";
}

std::string to_string(const Type& type) {
  return std::string(name_of(type.dtype)) + to_string(type.shape);
}

double get_element(const ConstTensorView& t, int64_t i) {
  switch (t.dtype()) {
    case DType::f64:
      return t.as<double>()[i];
    case DType::f32:
      return static_cast<double>(t.as<float>()[i]);
    case DType::bf16:
      return static_cast<double>(to_float(t.as<bf16>()[i]));
    case DType::i64:
      return static_cast<double>(t.as<int64_t>()[i]);
    case DType::i32:
      return static_cast<double>(t.as<int32_t>()[i]);
    case DType::u16:
      return static_cast<double>(t.as<uint16_t>()[i]);
    case DType::u8:
      return static_cast<double>(t.as<uint8_t>()[i]);
  }
  return 0.0;
}

void set_element(const TensorView& t, int64_t i, double value) {
  switch (t.dtype()) {
    case DType::f64:
      t.as<double>()[i] = value;
      break;
    case DType::f32:
      t.as<float>()[i] = static_cast<float>(value);
      break;
    case DType::bf16:
      t.as<bf16>()[i] = to_bf16(static_cast<float>(value));
      break;
    case DType::i64:
      t.as<int64_t>()[i] = static_cast<int64_t>(value);
      break;
    case DType::i32:
      t.as<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    case DType::u16:
      t.as<uint16_t>()[i] = static_cast<uint16_t>(value);
      break;
    case DType::u8:
      t.as<uint8_t>()[i] = static_cast<uint8_t>(value);
      break;
  }
}

}  // namespace tightloop
