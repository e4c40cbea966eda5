#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "tightloop/ops/common/cuda_pack.cuh"
#include "tightloop/ops/common/cuda_rows.cuh"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/polar_express/polar_express_kernels.h"

namespace tightloop {
namespace {

static_assert(kPolarStack <= kMostStacked);
constexpr int kThreads = 1024;  // of the one block that finds the factors of a matrix's rows

/// Sum over all rows of fn(row), in every thread of the block.
template <typename Fn>
__device__ double sum_of_rows(int64_t rows, Fn&& fn) {
  double sum = 0.0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += fn(r);
  return block_sum_f64<kThreads>(sum);
}

/// Row factors that equilibrate, then scale below norm 1: both from one pass over the matrix, one
/// block each.
__global__ void __launch_bounds__(kThreads) initial_factors(const double* all_squares,
                                                            float* all_factors,
                                                            int64_t rows,
                                                            bool equilibrate,
                                                            double norm_factor) {
  const double* squares = all_squares + blockIdx.x * rows;
  float* row_factor = all_factors + blockIdx.x * rows;
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const double target = sqrt(total / static_cast<double>(rows));
  const auto factor_of = [=](int64_t r) {
    return equilibrate ? target / std::max(sqrt(squares[r]), 1e-6) : 1.0;
  };
  const double scaled =
      sum_of_rows(rows, [=](int64_t r) { return factor_of(r) * factor_of(r) * squares[r]; });
  const double factor = 1.0 / (norm_factor * sqrt(scaled) + 1e-6);
  for (int64_t r = threadIdx.x; r < rows; r += kThreads)
    row_factor[r] = static_cast<float>(factor_of(r) * factor);
}

/// The factor that gives a matrix the norm of an orthogonal one, for each of its rows.
__global__ void __launch_bounds__(kThreads)
    final_factors(const double* all_squares, float* all_factors, int64_t rows, double norm) {
  const double* squares = all_squares + blockIdx.x * rows;
  float* row_factor = all_factors + blockIdx.x * rows;
  const double total = sum_of_rows(rows, [=](int64_t r) { return squares[r]; });
  const auto factor = static_cast<float>(norm / std::max(sqrt(total), 1e-6));
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) row_factor[r] = factor;
}

/// y = x * row_factor, or y = x without factors.
template <int N, typename From, typename To>
__global__ void __launch_bounds__(kRowThreads)
    scale_rows(From x, To y, const float* row_factor, int64_t rows, int64_t cols) {
  for_row_piece<N>(rows, cols, [=](int64_t row, int64_t col) {
    float values[N];
    load_floats<N>(x(row) + col, values);
    const float factor = row_factor == nullptr ? 1.0f : row_factor[row];
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] *= factor;
    store_floats<N>(y(row) + col, values);
  });
}

/// One call: the stack's shape, and the launches over all of its matrices.
template <typename T>
class Stack {
 public:
  Stack(const Exec& exec, const PolarExpress& a)
      : exec_(exec),
        a_(a),
        count_(static_cast<int64_t>(a.u.size())),
        shape_(a.u[0].shape()),
        side_(std::min(shape_[0], shape_[1])),
        scratch_(count_, shape_, DTypeOf<T>::value, exec.scratch.data()) {
    u_.rows = x_.rows = shape_[0], u_.cols = x_.cols = shape_[1];
    packed_ = shape_[1] % kRowPack == 0;
    for (size_t i = 0; i < a.u.size(); ++i) {
      u_.at[i] = a.u[i].template as<float>(), x_.at[i] = a.x[i].template as<float>();
      packed_ = packed_ && start_at_16_bytes({u_.at[i], x_.at[i]});
    }
  }

  void run() {
    find_squares(u_);
    initial_factors<<<static_cast<unsigned>(count_), kThreads, 0, cuda_stream(exec_)>>>(
        scratch_.row_squares, scratch_.row_factor, shape_[0], a_.options.row_equilibrate,
        a_.options.norm_factor);
    scale(u_, rows_of(scratch_.from), scratch_.row_factor);
    for (int64_t k = 0; k < a_.options.steps; ++k) step(kPolarSteps[static_cast<size_t>(k)]);
    if (!a_.options.renormalize) {
      scale(rows_of(scratch_.from), x_, nullptr);
    } else {
      find_squares(rows_of(scratch_.from));
      final_factors<<<static_cast<unsigned>(count_), kThreads, 0, cuda_stream(exec_)>>>(
          scratch_.row_squares, scratch_.row_factor, shape_[0],
          std::sqrt(static_cast<double>(side_)));
      scale(rows_of(scratch_.from), x_, scratch_.row_factor);
    }
    cuda::check_launch("polar_express");
  }

 private:
  int64_t rows() const { return count_ * shape_[0]; }
  StackRows<T> rows_of(std::byte* stack) const {
    return {reinterpret_cast<T*>(stack), scratch_.ld};
  }

  template <typename Rows>
  void find_squares(const Rows& x) {
    sum_row_squares_cuda(exec_, x, scratch_.row_squares, rows(), shape_[1], packed_);
  }

  template <typename From, typename To>
  void scale(const From& x, const To& y, const float* row_factor) {
    const auto kernel = packed_ ? scale_rows<kRowPack, From, To> : scale_rows<1, From, To>;
    kernel<<<row_piece_blocks(rows(), shape_[1]), kRowThreads, 0, cuda_stream(exec_)>>>(
        x, y, row_factor, rows(), shape_[1]);
  }

  /// X <- a X + (b A + c A^2) X in three products, X in scratch_.from before and after.
  void step(const PolarCoefficients& c) {
    constexpr DType kType = DTypeOf<T>::value;
    const bool tall = shape_[0] > shape_[1];
    const GemmInput x{.data = scratch_.from, .dtype = kType, .ld = scratch_.ld};
    const GemmInput gram{.data = scratch_.gram, .dtype = kType, .ld = scratch_.side_ld};
    const GemmInput polynomial{.data = scratch_.polynomial, .dtype = kType, .ld = gram.ld};
    const int64_t of_x = scratch_.stride, of_side = scratch_.side_stride;
    gemm_cuda(exec_,
              {.form = tall ? GemmForm::tn : GemmForm::nt,
               .M = side_,
               .N = side_,
               .K = std::max(shape_[0], shape_[1]),
               .a = x,
               .b = x,
               .c = {scratch_.gram, kType, gram.ld}},
              {.count = count_, .a_stride = of_x, .b_stride = of_x, .c_stride = of_side});
    // The Gram matrix is symmetric, so it may be read by rows on both sides.
    gemm_cuda(exec_,
              {.form = GemmForm::nt,
               .M = side_,
               .N = side_,
               .K = side_,
               .a = gram,
               .b = gram,
               .c = {scratch_.polynomial, kType, polynomial.ld},
               .epilogue = GemmEpilogue::add,
               .e = gram},
              {.count = count_,
               .a_stride = of_side,
               .b_stride = of_side,
               .c_stride = of_side,
               .e_stride = of_side},
              {.product = static_cast<float>(c.c), .added = static_cast<float>(c.b)});
    gemm_cuda(exec_,
              {.form = GemmForm::nn,
               .M = shape_[0],
               .N = shape_[1],
               .K = side_,
               .a = tall ? x : polynomial,
               .b = tall ? polynomial : x,
               .c = {scratch_.to, kType, x.ld},
               .epilogue = GemmEpilogue::add,
               .e = x},
              {.count = count_,
               .a_stride = tall ? of_x : of_side,
               .b_stride = tall ? of_side : of_x,
               .c_stride = of_x,
               .e_stride = of_x},
              {.product = 1.0f, .added = static_cast<float>(c.a)});
    std::swap(scratch_.from, scratch_.to);
  }

  const Exec& exec_;
  const PolarExpress& a_;
  int64_t count_;
  Shape shape_;
  int64_t side_;
  PolarStack scratch_;
  OperandRows<const float> u_{};
  OperandRows<float> x_{};
  bool packed_ = false;
};

}  // namespace

void polar_express_cuda(const Exec& exec, const PolarExpress& args) {
  with_cuda_type(args.options.dtype, "polar_express", [&](auto* type) {
    Stack<std::remove_pointer_t<decltype(type)>>(exec, args).run();
  });
}

}  // namespace tightloop
