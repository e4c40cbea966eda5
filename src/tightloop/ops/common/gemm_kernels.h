#pragma once

// Internal to the GEMM: what one instruction set provides. The blocking in gemm.cpp is common.

#include <cstdint>
#include <span>

#include "tightloop/core/dtype.h"
#include "tightloop/ops/common/gemm.h"

namespace tightloop::gemm_detail {

/// Depth of one packed block. Every element of C is a sum of partial sums over blocks of K, so this
/// number fixes the bits of the result: it is the same for all instruction sets.
constexpr int64_t kBlockK{256};
constexpr int kMaxMr{14};
constexpr int kMaxNr{32};
constexpr int kMaxRowKernel{8};

/// A rectangle of a stored matrix to be packed, scales already advanced to its corner.
struct PackSource {
  const void* data;
  int64_t ld;
  const float* row_scale;
  const float* col_scale;
};

/// Where the elements of one tile go, pointers already advanced to its corner.
struct TileStore {
  float* partial;  // running sum to add to the tile, or null
  int64_t partial_ld;
  void* c;
  DType c_dtype;
  int64_t c_ld;
  bool add_c;  // add C's own value (bf16 C that accumulates)
  GemmEpilogue epilogue;
  const void* e;
  DType e_dtype;
  int64_t e_ld;
};

/// c (R, nr) = or += sum over k of a[k * mr + i] * b[k * nr + j], R rows.
using MicroKernel =
    void (*)(int64_t kc, const float* a, const float* b, float* c, int64_t ldc, bool add);
/// Panels of `width` along i, each dst[k * width + i], zero beyond `extent`. `panel_stride` floats
/// from one panel to the next.
using PackFn =
    void (*)(const PackSource& src, int64_t extent, int64_t kc, float* dst, int64_t panel_stride);
/// tile[m * nr + n] = sum over k of x[m * ldx + k] * w[n * ldw + k] for `rows` rows and `cols`
/// columns.
using RowKernel = void (*)(
    const float* x, int64_t ldx, const void* w, int64_t ldw, int64_t K, int cols, float* tile);
using FinishFn = void (*)(const float* tile, int64_t rows, int64_t cols, const TileStore& to);

struct Kernels {
  const char* name;
  int mr, nr;
  int64_t block_m;                // rows of A packed at a time: with kBlockK, under half of L2
  MicroKernel micro[kMaxMr + 1];  // by number of rows
  /// [dtype: f32, bf16][scaled]; `k_major`: a stored row is one k, else a stored row is one i.
  PackFn pack_a_k_major[2][2], pack_a_row_major[2][2];
  PackFn pack_b_k_major[2][2], pack_b_row_major[2][2];
  RowKernel rows[2][kMaxRowKernel + 1];  // [dtype of w][rows]
  FinishFn finish;
};

/// Null where this build or this processor lacks the instruction set.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* portable_kernels();
/// The best of them.
const Kernels& native_kernels();

size_t scratch_bytes(const Kernels& kernels, const Gemm& g, const GemmBatch& batch = {});
void gemm_with(const Kernels& kernels,
               const Gemm& g,
               const GemmBatch& batch,
               std::span<std::byte> scratch);

}  // namespace tightloop::gemm_detail
