#pragma once

#include "tightloop/ops/op_entry.h"
#include "tightloop/program/program.h"

/// The learned and fixed factors of scaled sums, for scaled_add and the operations that fuse it.
namespace tightloop {

/// A factor: constant * vector[index], or the constant alone without a vector.
struct ScaledTerm {
  Value vector = {};
  int64_t index = 0;
  double constant = 1.0;
};

/// Its value; T is the element type of the vector: float, or double on the reference device.
template <typename T>
T factor_of(double constant, const ConstTensorView& vector, int64_t index) {
  if (vector.empty()) return static_cast<T>(constant);
  return static_cast<T>(constant * static_cast<double>(vector.as<T>()[index]));
}

/// For infer functions: `vector` is an f32 vector that has element `index`.
inline void expect_factor(std::string_view op,
                          std::string_view vector_name,
                          const Type& vector,
                          std::string_view index_name,
                          int64_t index) {
  expect_rank(op, vector_name, vector, 1);
  expect_dtype(op, vector_name, vector, DType::f32);
  if (index < 0 || index >= vector.elems())
    fail(ErrorKind::shape, "{}: {} is {}, but {} has {} elements", op, index_name, index,
         vector_name, vector.elems());
}

}  // namespace tightloop
