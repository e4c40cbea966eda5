#include <algorithm>
#include <array>
#include <cublasLt.h>
#include <map>
#include <mutex>

#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/common/gemm_sm90.h"

namespace tightloop {
namespace {

constexpr int64_t kWorkspaceBytes{32 << 20};  // what NVIDIA advises for Hopper

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::device, "cuBLASLt: {}: {}", what, cublasLtGetStatusString(status));
}

cudaDataType_t data_type(const char* what, DType dtype) {
  if (dtype == DType::f32) return CUDA_R_32F;
  if (dtype == DType::bf16) return CUDA_R_16BF;
  fail(ErrorKind::dtype, "gemm: {} is {}, expected f32 or bf16", what, name_of(dtype));
}

/// The handle and the workspace, made at the first product and kept.
struct Library {
  cublasLtHandle_t handle = nullptr;
  std::byte* workspace = nullptr;
  Library() {
    check(cublasLtCreate(&handle), "starting");
    workspace = cuda::allocate(kWorkspaceBytes);
  }
};

Library& library() {
  static Library instance;
  return instance;
}

/// Largest power of two up to 256 that divides the address.
int64_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address == 0 ? 256 : std::min<int64_t>(256, static_cast<int64_t>(address & -address));
}

/// Everything the choice of an algorithm depends on.
using Key = std::array<int64_t, 20>;

/// One prepared product. In cuBLASLt's column-major terms it computes C^T (N,M) = op(B)^T op(A)^T:
/// its first operand is our B.
struct Product {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t b = nullptr, a = nullptr, e = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

cublasLtMatrixLayout_t layout(
    cudaDataType_t type, int64_t rows, int64_t cols, int64_t ld, int64_t count, int64_t stride) {
  cublasLtMatrixLayout_t made = nullptr;
  // A matrix of one column has no second one to step to; the library still wants ld >= rows.
  check(cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), std::max(ld, rows)),
        "describing a matrix");
  const auto batch = static_cast<int32_t>(count);
  check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                         sizeof batch),
        "describing a stack");
  check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                         sizeof stride),
        "describing a stack");
  return made;
}

/// `e`, `e_ld`, `e_stride`: what is added, C itself or the epilogue's operand.
Product prepare(
    const Gemm& g, const GemmBatch& batch, const void* e, int64_t e_ld, int64_t e_stride) {
  const cudaDataType_t in = data_type("A", g.a.dtype), out = data_type("C", g.c.dtype);
  const cublasOperation_t of_b = g.form == GemmForm::nt ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t of_a = g.form == GemmForm::tn ? CUBLAS_OP_T : CUBLAS_OP_N;
  Product p;
  check(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
  check(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &of_b, sizeof of_b),
        "describing a product");
  check(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, &of_a, sizeof of_a),
        "describing a product");
  p.b = g.form == GemmForm::nt ? layout(in, g.K, g.N, g.b.ld, batch.count, batch.b_stride)
                               : layout(in, g.N, g.K, g.b.ld, batch.count, batch.b_stride);
  p.a = g.form == GemmForm::tn ? layout(in, g.M, g.K, g.a.ld, batch.count, batch.a_stride)
                               : layout(in, g.K, g.M, g.a.ld, batch.count, batch.a_stride);
  p.c = layout(out, g.N, g.M, g.c.ld, batch.count, batch.c_stride);
  p.e = layout(out, g.N, g.M, e_ld, batch.count, e_stride);

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preparing a product");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value),
          "preparing a product");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment(g.b.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment(g.a.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(alignment(e)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(g.c.data)));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library().handle, p.desc, p.b, p.a, p.e, p.c, preference, 1, &best, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0)
    fail(ErrorKind::unsupported, "cuBLASLt: no algorithm for a product of {} x {} x {} of {} ({})",
         g.M, g.N, g.K, name_of(g.a.dtype), cublasLtGetStatusString(status));
  p.algorithm = best.algo;
  return p;
}

const Product& prepared(
    const Gemm& g, const GemmBatch& batch, const void* e, int64_t e_ld, int64_t e_stride) {
  static std::mutex mutex;
  static std::map<Key, Product> products;
  const Key key{static_cast<int64_t>(g.form),
                g.M,
                g.N,
                g.K,
                g.a.ld,
                g.b.ld,
                g.c.ld,
                e_ld,
                static_cast<int64_t>(g.a.dtype),
                static_cast<int64_t>(g.c.dtype),
                batch.count,
                batch.a_stride,
                batch.b_stride,
                batch.c_stride,
                e_stride,
                alignment(g.a.data),
                alignment(g.b.data),
                alignment(g.c.data),
                alignment(e),
                0};
  const std::lock_guard lock(mutex);
  const auto at = products.find(key);
  if (at != products.end()) return at->second;
  return products.emplace(key, prepare(g, batch, e, e_ld, e_stride)).first->second;
}

__device__ inline float squared_relu(float v) {
  const float positive = v > 0.0f ? v : (v != v ? v : 0.0f);
  return positive * positive;
}

struct Relu2 {
  __device__ void operator()(const float (&v)[1], float (&y)[1]) const {
    y[0] = squared_relu(v[0]);
  }
};
struct Relu2Bwd {
  __device__ void operator()(const float (&v_e)[2], float (&y)[1]) const {
    y[0] = v_e[0] * (2.0f * sqrtf(v_e[1]));
  }
};
struct AddE {
  __device__ void operator()(const float (&v_e)[2], float (&y)[1]) const { y[0] = v_e[1] + v_e[0]; }
};

/// Over a C without gaps and an e of its type.
template <typename C>
void map_epilogue(const Exec& exec, const Gemm& g) {
  C* c = static_cast<C*>(g.c.data);
  const C* e = static_cast<const C*>(g.e.data);
  const int64_t n = g.M * g.N;
  if (g.epilogue == GemmEpilogue::relu2) {
    cuda_map<C, 1, 1>(exec, "gemm's epilogue", n, {c}, {c}, Relu2{});
  } else if (g.epilogue == GemmEpilogue::relu2_bwd) {
    cuda_map<C, 2, 1>(exec, "gemm's epilogue", n, {c, e}, {c}, Relu2Bwd{});
  } else {
    cuda_map<C, 2, 1>(exec, "gemm's epilogue", n, {c, e}, {c}, AddE{});
  }
}

template <typename C, typename E>
__global__ void epilogue_kernel(C* c,
                                const E* e,
                                GemmEpilogue epilogue,
                                int64_t rows,
                                int64_t cols,
                                int64_t c_ld,
                                int64_t e_ld,
                                int64_t c_stride,
                                int64_t e_stride) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= rows * cols) return;
  C* to = c + blockIdx.y * c_stride + i / cols * c_ld + i % cols;
  const float v = load_as_float(to);
  float y = 0.0f;
  if (epilogue == GemmEpilogue::relu2) {
    y = squared_relu(v);
  } else {
    const float x = load_as_float(e + blockIdx.y * e_stride + i / cols * e_ld + i % cols);
    y = epilogue == GemmEpilogue::add ? x + v : v * (2.0f * sqrtf(x));
  }
  store_float(to, y);
}

template <typename C, typename E>
void launch_epilogue(const Exec& exec, const Gemm& g, const GemmBatch& batch) {
  const dim3 grid(grid_for(g.M * g.N, kElementThreads), static_cast<unsigned>(batch.count));
  epilogue_kernel<C, E><<<grid, kElementThreads, 0, cuda_stream(exec)>>>(
      static_cast<C*>(g.c.data), static_cast<const E*>(g.e.data), g.epilogue, g.M, g.N, g.c.ld,
      g.e.ld, batch.c_stride, batch.e_stride);
  cuda::check_launch("gemm's epilogue");
}

void run_epilogue(const Exec& exec, const Gemm& g, const GemmBatch& batch) {
  const bool no_gaps = batch.count == 1 && g.c.ld == g.N &&
                       (g.e.data == nullptr || (g.e.ld == g.N && g.e.dtype == g.c.dtype));
  if (no_gaps)
    return with_cuda_type(g.c.dtype, "gemm", [&](auto* c) {
      map_epilogue<std::remove_pointer_t<decltype(c)>>(exec, g);
    });
  with_cuda_type(g.c.dtype, "gemm", [&](auto* c) {
    with_cuda_type(g.e.data == nullptr ? DType::f32 : g.e.dtype, "gemm", [&](auto* e) {
      launch_epilogue<std::remove_pointer_t<decltype(c)>, std::remove_pointer_t<decltype(e)>>(
          exec, g, batch);
    });
  });
}

void check_product(const Gemm& g, const GemmBatch& batch) {
  if (g.M < 0 || g.N < 0 || g.K < 0 || batch.count < 0)
    fail(ErrorKind::shape, "gemm: M, N, K are {}, {}, {} in a stack of {}: none may be negative",
         g.M, g.N, g.K, batch.count);
  if (g.a.dtype != g.b.dtype)
    fail(ErrorKind::unsupported, "gemm on cuda: A is {}, B {}; they must be equal",
         name_of(g.a.dtype), name_of(g.b.dtype));
  if (g.a.row_scale != nullptr || g.b.row_scale != nullptr)
    fail(ErrorKind::unsupported, "gemm on cuda: scales of the operands are not supported");
  if (g.accumulate && g.epilogue != GemmEpilogue::none)
    fail(ErrorKind::usage, "gemm: an epilogue cannot be combined with accumulate");
  if (batch.count > 65535)
    fail(ErrorKind::unsupported, "gemm on cuda: a stack of {} products, at most 65535",
         batch.count);
}

}  // namespace

int64_t gemm_cuda_workspace_bytes() {
  return kWorkspaceBytes;
}

void gemm_cuda(const Exec& exec,
               const Gemm& g,
               const GemmBatch& batch,
               const GemmCudaFactors& factors) {
  check_product(g, batch);
  if (g.M == 0 || g.N == 0 || batch.count == 0) return;
  // What cuBLASLt would need a second pass for.
  const bool two_passes =
      g.epilogue == GemmEpilogue::relu2 || g.epilogue == GemmEpilogue::relu2_bwd;
  if (two_passes && gemm_sm90_takes(g, batch)) return gemm_sm90(exec, g, batch, factors);
  // What is added comes through beta where its type allows it.
  const bool adds_e = g.epilogue == GemmEpilogue::add && g.e.dtype == g.c.dtype;
  if (factors.added != 1.0f && !adds_e)
    fail(ErrorKind::unsupported, "gemm on cuda: a factor {} without a sum of C's type to scale",
         factors.added);
  const float alpha = factors.product, beta = adds_e ? factors.added : (g.accumulate ? 1.0f : 0.0f);
  const void* e = adds_e ? g.e.data : g.c.data;
  const int64_t e_ld = adds_e ? g.e.ld : g.c.ld;
  const int64_t e_stride = adds_e ? batch.e_stride : batch.c_stride;
  if (g.K == 0) fail(ErrorKind::unsupported, "gemm on cuda: K is 0");
  const Product& p = prepared(g, batch, e, e_ld, e_stride);
  check(cublasLtMatmul(library().handle, p.desc, &alpha, g.b.data, p.b, g.a.data, p.a, &beta, e,
                       p.e, g.c.data, p.c, &p.algorithm, library().workspace,
                       static_cast<size_t>(kWorkspaceBytes), cuda_stream(exec)),
        "launching a product");
  if (g.epilogue != GemmEpilogue::none && !adds_e) run_epilogue(exec, g, batch);
}

}  // namespace tightloop
