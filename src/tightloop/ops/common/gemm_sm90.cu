#include <algorithm>
#include <array>
#include <cudaTypedefs.h>

#include "tightloop/ops/common/gemm_sm90.cuh"
#include "tightloop/ops/common/gemm_sm90.h"

namespace tightloop {
namespace {

/// The driver's function that describes a tensor to the copy engine; it is asked for at run time,
/// so that nothing links against the driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                                12000, cudaEnableDefault, &result);
    if (status != cudaSuccess || result != cudaDriverEntryPointSuccess)
      fail(ErrorKind::device, "CUDA: the driver has no cuTensorMapEncodeTiled ({})",
           cudaGetErrorString(status));
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return found;
}

struct Elements {
  CUtensorMapDataType type;
  CUtensorMapSwizzle swizzle;
};

/// The innermost dimension first; strides in bytes.
CUtensorMap encode(const void* data,
                   const Elements& of,
                   const std::array<int64_t, 3>& sizes,
                   const std::array<int64_t, 2>& strides,
                   const std::array<cuuint32_t, 3>& box) {
  CUtensorMap map{};
  cuuint64_t size[3], stride[2];
  std::copy(sizes.begin(), sizes.end(), size);
  std::copy(strides.begin(), strides.end(), stride);
  const cuuint32_t elements[3]{1, 1, 1};
  const CUresult status =
      encoder()(&map, of.type, 3, const_cast<void*>(data), size, stride, box.data(), elements,
                CU_TENSOR_MAP_INTERLEAVE_NONE, of.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail(ErrorKind::internal, "CUDA: a map of {} x {} x {} for the copy engine was refused: {}",
         sizes[2], sizes[1], sizes[0], static_cast<int>(status));
  return map;
}

template <GemmForm Form>
void enqueue(const Exec& exec,
             const Gemm& g,
             const GemmBatch& batch,
             const GemmCudaFactors& factors) {
  using namespace sm90;
  switch (g.epilogue) {
    case GemmEpilogue::none:
      return enqueue<Form>(exec, g, batch, Elementwise<Scale>{{factors.product}});
    case GemmEpilogue::relu2:
      return enqueue<Form>(exec, g, batch, Elementwise<SquaredRelu>{});
    case GemmEpilogue::relu2_bwd:
      return enqueue<Form>(exec, g, batch, Elementwise<SquaredReluBwd>{});
    case GemmEpilogue::add:
      return enqueue<Form>(exec, g, batch, Elementwise<Add>{{factors.product, factors.added}});
  }
}

bool in_units_of_16_bytes(const void* data, int64_t ld, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ld % 8 == 0 && stride % 8 == 0;
}

/// Whether coordinates and counts of tiles fit the kernel's integers.
bool fits(int64_t n) {
  return n >= 1 && n < int64_t{1} << 30;
}

bool on_hopper() {
  static const bool is = cuda::device_count() > 0 && cuda::device_info().compute_major == 9;
  return is;
}

/// Whether the product is of a matrix with itself.
bool is_gram(const Gemm& g, const GemmBatch& batch) {
  return g.form == GemmForm::nt && g.M == g.N && g.a.data == g.b.data && g.a.ld == g.b.ld &&
         batch.a_stride == batch.b_stride &&
         (g.epilogue == GemmEpilogue::none || g.epilogue == GemmEpilogue::add);
}

bool reads_e(const Gemm& g) {
  return g.epilogue == GemmEpilogue::relu2_bwd || g.epilogue == GemmEpilogue::add;
}

}  // namespace

CUtensorMap sm90::map_of(const void* data,
                         int64_t rows,
                         int64_t cols,
                         int64_t ld,
                         int64_t count,
                         int64_t stride,
                         int box_rows) {
  // Of a single matrix the third stride is not used; it must still be a multiple of 16.
  return encode(data, {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_SWIZZLE_128B},
                {cols, rows, count}, {ld * 2, (stride == 0 ? ld * rows : stride) * 2},
                {64, static_cast<cuuint32_t>(box_rows), 1});
}

CUtensorMap sm90::map_of_rows(const float* data, int64_t rows, int cols) {
  return encode(data, {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_SWIZZLE_NONE},
                {cols, rows, 1}, {int64_t{cols} * 4, rows * cols * 4},
                {static_cast<cuuint32_t>(cols), 1, 1});
}

bool gemm_sm90_takes(const Gemm& g, const GemmBatch& batch) {
  const auto bf16_matrix = [](const void* data, DType dtype, int64_t ld, int64_t stride) {
    return dtype == DType::bf16 && in_units_of_16_bytes(data, ld, stride);
  };
  if (!on_hopper() || cuda::generic_arch() || g.form == GemmForm::tn || g.accumulate) return false;
  if (g.N % 8 != 0 || g.K % 8 != 0) return false;  // the copy engine writes whole units of 16 bytes
  if (!fits(g.M) || !fits(g.N) || !fits(g.K) || !fits(batch.count)) return false;
  if (g.a.row_scale != nullptr || g.a.col_scale != nullptr || g.b.row_scale != nullptr ||
      g.b.col_scale != nullptr)
    return false;
  if (!bf16_matrix(g.a.data, g.a.dtype, g.a.ld, batch.a_stride) ||
      !bf16_matrix(g.b.data, g.b.dtype, g.b.ld, batch.b_stride) ||
      !bf16_matrix(g.c.data, g.c.dtype, g.c.ld, batch.c_stride))
    return false;
  if (reads_e(g) && !bf16_matrix(g.e.data, g.e.dtype, g.e.ld, batch.e_stride)) return false;
  if (g.symmetric && !is_gram(g, batch)) return false;
  // The number of tiles too.
  return fits((g.M / 256 + 1) * (g.N / 256 + 1)) &&
         fits((g.M / 256 + 1) * (g.N / 256 + 1) * batch.count);
}

void gemm_sm90(const Exec& exec,
               const Gemm& g,
               const GemmBatch& batch,
               const GemmCudaFactors& factors) {
  if (!gemm_sm90_takes(g, batch))
    fail(ErrorKind::unsupported, "gemm on sm_90: not for this product of {} x {} x {} of {}", g.M,
         g.N, g.K, name_of(g.a.dtype));
  if (g.symmetric) return sm90::enqueue_symmetric(exec, g, batch, factors);
  if (factors.diagonal != 0.0f || factors.of_matrix != nullptr)
    fail(ErrorKind::unsupported, "gemm on sm_90: factors of symmetric products for a whole one");
  if (g.form == GemmForm::nt) return enqueue<GemmForm::nt>(exec, g, batch, factors);
  enqueue<GemmForm::nn>(exec, g, batch, factors);
}

}  // namespace tightloop
