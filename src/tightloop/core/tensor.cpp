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

}  // namespace tightloop
