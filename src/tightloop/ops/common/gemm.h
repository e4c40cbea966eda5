#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tightloop/core/dtype.h"

namespace tightloop {

/// Which operands are stored transposed. M, N, K always describe C (M,N) = op(A) (M,K) op(B) (K,N).
enum class GemmForm : uint8_t {
  nt,  // A (M,K), B (N,K): y = x W^T
  nn,  // A (M,K), B (K,N): dx = dy W
  tn,  // A (K,M), B (K,N): dW = dy^T x
};

/// What happens to a finished element v of op(A) op(B) before it is stored; e is the element of the
/// extra input (M,N) at the same place.
enum class GemmEpilogue : uint8_t {
  none,
  relu2,      // max(v, 0)^2
  relu2_bwd,  // v * 2 sqrt(e), with e = relu2(x): the derivative of relu2 at x is 2 max(x, 0)
  add,        // e + v
};

/// A stored row-major matrix, f32 or bf16, `ld` elements from one row to the next.
struct GemmInput {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t ld = 0;
  /// Optional factors, one per stored row and one per stored column: the operand is
  /// (x * row_scale[r]) * col_scale[c], formed in f32 while it is packed.
  const float* row_scale = nullptr;
  const float* col_scale = nullptr;
};

struct GemmOutput {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t ld = 0;
};

struct Gemm {
  GemmForm form = GemmForm::nt;
  int64_t M = 0, N = 0, K = 0;
  GemmInput a, b;
  GemmOutput c;
  /// C += instead of C =; only with GemmEpilogue::none.
  bool accumulate = false;
  GemmEpilogue epilogue = GemmEpilogue::none;
  GemmInput e;
  /// The caller knows that the product is symmetric (X X^T, or powers of such): only the lower half
  /// is computed, then mirrored. M must equal N; only with GemmEpilogue::none (gemm_sm90.h: or add,
  /// of a symmetric e), not accumulating.
  bool symmetric = false;
};

/// `count` products of one shape; strides in elements from one matrix to the next.
struct GemmBatch {
  int64_t count = 1;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0, e_stride = 0;
};

/// Bytes of scratch that gemm() needs for these shapes with the current thread_count().
size_t gemm_scratch_bytes(const Gemm& g);
size_t gemm_batched_scratch_bytes(const Gemm& g, const GemmBatch& batch);

/// C = epilogue(op(A) op(B)), or C += op(A) op(B).
/// Types:  A, B, C, e each f32 or bf16; products and sums in f32 with fused multiply-add.
/// Memory: C must not overlap A, B, e or scratch: sums over long K wait in C. No allocation.
/// Order:  every element sums over K in an order fixed by the shape: same bits for any number of
///         threads and on every machine with fused multiply-add, of whatever vector width.
/// Errors: Error{shape, dtype, usage} before any work; Error{internal} when scratch is too small.
void gemm(const Gemm& g, std::span<std::byte> scratch);

/// The same for each product of a stack, spread over the threads: each with the bits that gemm()
/// gives it. The scales are shared by all.
void gemm_batched(const Gemm& g, const GemmBatch& batch, std::span<std::byte> scratch);

/// The micro-kernel in use here: "avx512", "avx2", "neon" or "portable".
std::string_view gemm_kernel_name();

/// The truth for tests: the same in float64, all matrices double, by the definition.
struct GemmRef {
  GemmForm form = GemmForm::nt;
  int64_t M = 0, N = 0, K = 0;
  const double* a = nullptr;
  int64_t lda = 0;
  const double* b = nullptr;
  int64_t ldb = 0;
  double* c = nullptr;
  int64_t ldc = 0;
  bool accumulate = false;
  GemmEpilogue epilogue = GemmEpilogue::none;
  const double* e = nullptr;
  int64_t lde = 0;
};
void gemm_ref(const GemmRef& g);

}  // namespace tightloop
