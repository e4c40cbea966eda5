#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "tightloop/core/dtype.h"
#include "tightloop/core/error.h"

namespace tightloop {

/// Sizes of up to five dimensions, outermost first. A scalar has rank 0 and one element.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) push_back(d);
  }

  int rank() const { return rank_; }
  /// Negative `i` counts from the last dimension.
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i < 0 ? i + rank_ : i)]; }
  int64_t elems() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
    return n;
  }
  int64_t cols() const { return rank_ == 0 ? 1 : (*this)[-1]; }
  /// Product of all dimensions but the last.
  int64_t rows() const { return cols() == 0 ? 0 : elems() / cols(); }
  void push_back(int64_t dim) {
    if (rank_ == kMaxRank || dim < 0)
      fail(ErrorKind::shape, "shape: bad dimension {} at position {}", dim, rank_);
    dims_[static_cast<size_t>(rank_++)] = dim;
  }
  /// All dimensions but the last, then `cols`.
  Shape with_cols(int64_t cols) const {
    Shape s = *this;
    s.dims_[static_cast<size_t>(s.rank_ - 1)] = cols;
    return s;
  }
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// "(2, 3, 4)".
std::string to_string(const Shape& shape);

/// Element type and shape: everything known about a tensor before it has memory.
struct Type {
  DType dtype = DType::f32;
  Shape shape;

  int64_t elems() const { return shape.elems(); }
  int64_t bytes() const { return elems() * size_of(dtype); }
  bool operator==(const Type&) const = default;
};

/// "f32(2, 3)".
std::string to_string(const Type& type);

/// A non-owning, contiguous, row-major tensor. Empty (data null) means "not given".
struct TensorView {
  void* data = nullptr;
  Type type;

  bool empty() const { return data == nullptr; }
  DType dtype() const { return type.dtype; }
  const Shape& shape() const { return type.shape; }
  int64_t elems() const { return type.elems(); }
  int64_t bytes() const { return type.bytes(); }
  /// The elements as T; Error{dtype} when they are stored otherwise.
  template <typename T>
  T* as() const {
    if (type.dtype != DTypeOf<T>::value)
      fail(ErrorKind::dtype, "tensor of {} read as {}", to_string(type),
           name_of(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }
};

struct ConstTensorView {
  const void* data = nullptr;
  Type type;

  ConstTensorView() = default;
  ConstTensorView(const void* d, Type t) : data(d), type(t) {}
  ConstTensorView(const TensorView& v) : data(v.data), type(v.type) {}  // NOLINT: as span<const T>

  bool empty() const { return data == nullptr; }
  DType dtype() const { return type.dtype; }
  const Shape& shape() const { return type.shape; }
  int64_t elems() const { return type.elems(); }
  int64_t bytes() const { return type.bytes(); }
  template <typename T>
  const T* as() const {
    if (type.dtype != DTypeOf<T>::value)
      fail(ErrorKind::dtype, "tensor of {} read as {}", to_string(type),
           name_of(DTypeOf<T>::value));
    return static_cast<const T*>(data);
  }
};

/// Element i of a tensor of any dtype as double; for tests, scalars and small copies.
double get_element(const ConstTensorView& t, int64_t i);
/// Rounds to the stored dtype.
void set_element(const TensorView& t, int64_t i, double value);

}  // namespace tightloop
