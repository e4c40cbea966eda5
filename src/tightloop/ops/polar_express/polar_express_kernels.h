#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "tightloop/ops/common/gemm.h"
#include "tightloop/ops/polar_express/polar_express.h"

namespace tightloop {

struct PolarCoefficients {
  double a, b, c;
};

/// One step's polynomial each; they are made for each other and used in this order.
constexpr std::array<PolarCoefficients, 5> kPolarSteps{{
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
}};

/// The three products of one step for a matrix of this shape; the data is filled in later.
struct PolarProducts {
  Gemm gram, square, apply;

  explicit PolarProducts(const Shape& shape) {
    const int64_t m = shape[0], n = shape[1], side = std::min(m, n);
    const bool tall = m > n;
    gram = {.form = tall ? GemmForm::tn : GemmForm::nt,
            .M = side,
            .N = side,
            .K = std::max(m, n),
            .a = {.ld = n},
            .b = {.ld = n},
            .c = {.ld = side},
            .e = {},
            .symmetric = true};
    // The Gram matrix is symmetric, so it may be read by rows on both sides.
    square = {.form = GemmForm::nt,
              .M = side,
              .N = side,
              .K = side,
              .a = {.ld = side},
              .b = {.ld = side},
              .c = {.ld = side},
              .e = {},
              .symmetric = true};
    apply = {.form = GemmForm::nn,
             .M = m,
             .N = n,
             .K = side,
             .a = {.ld = tall ? n : side},
             .b = {.ld = tall ? side : n},
             .c = {.ld = n},
             .e = {}};
  }
};

/// The parts of the scratch on the CPU.
struct PolarWorkspace {
  float *other, *gram, *square, *row_factor;
  double* row_squares;
  std::span<std::byte> rest;

  PolarWorkspace(const Shape& shape, std::span<std::byte> scratch) {
    std::byte* next = scratch.data();
    const auto take = [&](int64_t bytes) {
      std::byte* start = next;
      next += aligned(bytes);
      return start;
    };
    const int64_t side = std::min(shape[0], shape[1]);
    other = reinterpret_cast<float*>(take(shape.elems() * 4));
    gram = reinterpret_cast<float*>(take(side * side * 4));
    square = reinterpret_cast<float*>(take(side * side * 4));
    row_factor = reinterpret_cast<float*>(take(shape[0] * 4));
    row_squares = reinterpret_cast<double*>(take(shape[0] * 8));
    rest = {next, static_cast<size_t>(scratch.data() + scratch.size() - next)};
  }

  static int64_t bytes(const Shape& shape) {
    const int64_t side = std::min(shape[0], shape[1]);
    return aligned(shape.elems() * 4) + 2 * aligned(side * side * 4) + aligned(shape[0] * 4) +
           aligned(shape[0] * 8);
  }

 private:
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

/// The parts of the scratch on cuda, for a stack of matrices. Rows are padded to start at 16 bytes.
struct PolarStack {
  int64_t ld = 0, side_ld = 0;          // elements from one row to the next
  int64_t stride = 0, side_stride = 0;  // and from one matrix to the next
  std::byte *from = nullptr, *to = nullptr, *gram = nullptr, *polynomial = nullptr;
  float* row_factor = nullptr;
  double* row_squares = nullptr;
  int64_t bytes = 0;

  /// scratch: null to count the bytes.
  PolarStack(int64_t count, const Shape& shape, DType dtype, std::byte* scratch = nullptr) {
    const int64_t side = std::min(shape[0], shape[1]), width = size_of(dtype);
    ld = (shape[1] + 7) / 8 * 8, side_ld = (side + 7) / 8 * 8;
    stride = shape[0] * ld, side_stride = side * side_ld;
    const auto take = [&](int64_t wanted) {
      std::byte* start = scratch == nullptr ? nullptr : scratch + bytes;
      bytes += (wanted + 255) / 256 * 256;
      return start;
    };
    from = take(count * stride * width);
    to = take(count * stride * width);
    gram = take(count * side_stride * width);
    polynomial = take(count * side_stride * width);
    row_factor = reinterpret_cast<float*>(take(count * shape[0] * 4));
    row_squares = reinterpret_cast<double*>(take(count * shape[0] * 8));
  }
};

/// One matrix of a call.
struct PolarMatrix {
  ConstTensorView u;
  TensorView x;
  const PolarExpressOptions& options;
};

void polar_express_ref(const PolarMatrix& args);
/// scratch: polar_express_scratch(shape) bytes.
void polar_express_cpu(const PolarMatrix& args, std::span<std::byte> scratch);
int64_t polar_express_scratch(const Shape& shape);
/// exec.scratch: PolarStack::bytes.
void polar_express_cuda(const Exec& exec, const PolarExpress& args);

}  // namespace tightloop
