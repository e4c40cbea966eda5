#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cublasLt.h>
#include <map>
#include <mutex>
#include <optional>

#include "tightloop/ops/common/cuda_map.cuh"
#include "tightloop/ops/common/gemm_choices.h"
#include "tightloop/ops/common/gemm_cuda.h"
#include "tightloop/ops/common/gemm_sm90.h"

namespace tightloop {
namespace {

constexpr int64_t kWorkspaceBytes = gemm_cuda_workspace_bytes();

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

/// Largest power of two up to that of slots and buffers that divides the address.
int64_t alignment(const void* p) {
  constexpr int64_t kMost = 64;
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address == 0 ? kMost : std::min<int64_t>(kMost, static_cast<int64_t>(address & -address));
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

/// What is added to a product: C itself or the epilogue's operand.
struct Added {
  const void* data;
  int64_t ld, stride;
  float factor;  // 0: nothing is added
};

/// The operands of a product of g's layout, of random numbers, in memory of their own.
class TrialOperands {
 public:
  /// Error{oom}.
  TrialOperands(const Exec& exec, const Gemm& g, const GemmBatch& batch, const Added& e);
  ~TrialOperands() { cuda::release(memory_); }
  TrialOperands(const TrialOperands&) = delete;
  TrialOperands& operator=(const TrialOperands&) = delete;

  std::byte *a, *b, *c, *e;

 private:
  std::byte* memory_;
};

/// Numbers between -1 and 1: with zeros a product draws less power and runs faster.
template <typename T>
__global__ void fill_random_kernel(T* p, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  uint64_t bits = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull;
  bits = (bits ^ (bits >> 31)) * 0xbf58476d1ce4e5b9ull;
  store_float(p + i, static_cast<float>(static_cast<int32_t>(bits >> 32)) * 0x1p-31f);
}

TrialOperands::TrialOperands(const Exec& exec,
                             const Gemm& g,
                             const GemmBatch& batch,
                             const Added& added) {
  const auto elems = [&](int64_t rows, int64_t ld, int64_t stride) {
    return (batch.count - 1) * stride + rows * ld;
  };
  const bool own_e = added.factor != 0.0f && added.data != g.c.data;
  const int64_t size = static_cast<int64_t>(size_of(g.a.dtype));
  const int64_t c_size = static_cast<int64_t>(size_of(g.c.dtype));
  const int64_t counts[4] = {elems(g.form == GemmForm::tn ? g.K : g.M, g.a.ld, batch.a_stride),
                             elems(g.form == GemmForm::nt ? g.N : g.K, g.b.ld, batch.b_stride),
                             elems(g.M, g.c.ld, batch.c_stride),
                             own_e ? elems(g.M, added.ld, added.stride) : 0};
  const int64_t sizes[4] = {size, size, c_size, c_size};
  int64_t offsets[5] = {0};
  for (int i = 0; i < 4; ++i)
    offsets[i + 1] = offsets[i] + (counts[i] * sizes[i] + 255) / 256 * 256;
  memory_ = cuda::allocate(std::max<int64_t>(offsets[4], 256));
  for (int i = 0; i < 4; ++i) {
    if (counts[i] == 0) continue;
    with_cuda_type(i < 2 ? g.a.dtype : g.c.dtype, "gemm", [&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      fill_random_kernel<T>
          <<<grid_for(counts[i], kElementThreads), kElementThreads, 0, cuda_stream(exec)>>>(
              reinterpret_cast<T*>(memory_ + offsets[i]), counts[i]);
    });
  }
  a = memory_ + offsets[0];
  b = memory_ + offsets[1];
  c = memory_ + offsets[2];
  e = own_e ? memory_ + offsets[3] : c;
}

cublasStatus_t launch(const Exec& exec,
                      const Product& p,
                      const cublasLtMatmulAlgo_t& algorithm,
                      const float (&factors)[2],
                      const void* a,
                      const void* b,
                      const void* e,
                      void* c) {
  return cublasLtMatmul(library().handle, p.desc, &factors[0], b, p.b, a, p.a, &factors[1], e, p.e,
                        c, p.c, &algorithm, library().workspace,
                        static_cast<size_t>(kWorkspaceBytes), cuda_stream(exec));
}

/// The library's first algorithms for a product, in its order.
struct Candidates {
  static constexpr int kMost = 8;
  cublasLtMatmulHeuristicResult_t ranking[kMost] = {};
  int count = 0;
};

/// The index of the fastest. An earlier one, which the library ranks higher, gives way to one that
/// is 2 % faster only: the choice should not follow noise.
int fastest(const Exec& exec,
            const Product& p,
            const Candidates& candidates,
            const float (&factors)[2],
            const TrialOperands& on) {
  constexpr int kRounds = 4;  // the first warms up
  cuda::Event marks[kRounds][Candidates::kMost][2];
  const int n = candidates.count;
  for (auto& round : marks) {
    for (int i = 0; i < n; ++i) {
      round[i][0].record();
      check(launch(exec, p, candidates.ranking[i].algo, factors, on.a, on.b, on.e, on.c),
            "timing a product");
      round[i][1].record();
    }
  }
  marks[kRounds - 1][n - 1][1].wait();
  double best[Candidates::kMost];
  int chosen = 0;
  for (int i = 0; i < n; ++i) {
    best[i] = 1e30;
    for (int round = 1; round < kRounds; ++round)
      best[i] = std::min(best[i], cuda::Event::seconds(marks[round][i][0], marks[round][i][1]));
    if (best[i] < 0.98 * best[chosen]) chosen = i;
  }
  return chosen;
}

std::string to_text(const cublasLtMatmulAlgo_t& algorithm) {
  std::string text;
  for (uint64_t word : algorithm.data) text += fmt::format("{:016x}", word);
  return text;
}

/// None for a text that is no algorithm which can serve the product here.
std::optional<cublasLtMatmulAlgo_t> from_text(const Product& p, const std::string& text) {
  cublasLtMatmulAlgo_t algorithm{};
  if (text.size() != 16 * std::size(algorithm.data)) return {};
  for (size_t i = 0; i < std::size(algorithm.data); ++i) {
    const char* from = text.data() + 16 * i;
    if (std::from_chars(from, from + 16, algorithm.data[i], 16).ptr != from + 16) return {};
  }
  cublasLtMatmulHeuristicResult_t result{};
  if (cublasLtMatmulAlgoCheck(library().handle, p.desc, p.b, p.a, p.e, p.c, &algorithm, &result) !=
          CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > static_cast<size_t>(kWorkspaceBytes))
    return {};
  return algorithm;
}

bool capturing(const Exec& exec) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(cuda_stream(exec), &status) != cudaSuccess ||
         status != cudaStreamCaptureStatusNone;
}

Product prepare(
    const Exec& exec, const Gemm& g, const GemmBatch& batch, const Added& e, const Key& key) {
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
  p.e = layout(out, g.N, g.M, e.ld, batch.count, e.stride);

  std::string name;
  for (int64_t part : key) name += (name.empty() ? "" : " ") + std::to_string(part);
  if (const std::optional<std::string> known = gemm_choices::find(name)) {
    if (const auto algorithm = from_text(p, *known)) {
      p.algorithm = *algorithm;
      gemm_choices::use(name, *known, {});
      return p;
    }
  }

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preparing a product");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value),
          "preparing a product");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  // Parts of a sum over K meet in float32 and in a pass of their own, or there are none: those that
  // meet in C are rounded to its type, in an order that is not documented beyond "sequential".
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment(g.b.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment(g.a.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(alignment(e.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(g.c.data)));
  const bool timed = gemm_choices::timing() && !capturing(exec);
  Candidates candidates;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library().handle, p.desc, p.b, p.a, p.e, p.c, preference, timed ? Candidates::kMost : 1,
      candidates.ranking, &candidates.count);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatmulHeuristicResult_t* const end = candidates.ranking + candidates.count;
  candidates.count = static_cast<int>(
      std::remove_if(candidates.ranking, end,
                     [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; }) -
      candidates.ranking);
  if (status != CUBLAS_STATUS_SUCCESS || candidates.count == 0)
    fail(ErrorKind::unsupported, "cuBLASLt: no algorithm for a product of {} x {} x {} of {} ({})",
         g.M, g.N, g.K, name_of(g.a.dtype), cublasLtGetStatusString(status));
  int chosen = 0;
  std::optional<double> seconds;
  if (timed) {
    const auto start = std::chrono::steady_clock::now();
    try {
      const TrialOperands on(exec, g, batch, e);
      chosen = fastest(exec, p, candidates, {1.0f, e.factor}, on);
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::oom) throw;  // no room to try them: the first serves
    }
  }
  p.algorithm = candidates.ranking[chosen].algo;
  gemm_choices::use(name, to_text(p.algorithm), seconds);
  return p;
}

const Product& prepared(const Exec& exec, const Gemm& g, const GemmBatch& batch, const Added& e) {
  static std::mutex mutex;
  static std::map<Key, Product> products;
  const Key key{static_cast<int64_t>(g.form),
                g.M,
                g.N,
                g.K,
                g.a.ld,
                g.b.ld,
                g.c.ld,
                e.ld,
                static_cast<int64_t>(g.a.dtype),
                static_cast<int64_t>(g.c.dtype),
                batch.count,
                batch.a_stride,
                batch.b_stride,
                batch.c_stride,
                e.stride,
                alignment(g.a.data),
                alignment(g.b.data),
                alignment(g.c.data),
                alignment(e.data),
                e.factor == 0.0f ? 0 : (e.data == g.c.data ? 1 : 2)};
  const std::lock_guard lock(mutex);
  const auto at = products.find(key);
  if (at != products.end()) return at->second;
  return products.emplace(key, prepare(exec, g, batch, e, key)).first->second;
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

int64_t gemm_cuda_library_version() {
  return static_cast<int64_t>(cublasLtGetVersion());
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
  if (factors.diagonal != 0.0f || factors.of_matrix != nullptr)
    fail(ErrorKind::unsupported, "gemm on cuda: factors of symmetric products on sm_90");
  if (factors.added != 1.0f && !adds_e)
    fail(ErrorKind::unsupported, "gemm on cuda: a factor {} without a sum of C's type to scale",
         factors.added);
  const Added e{adds_e ? g.e.data : g.c.data, adds_e ? g.e.ld : g.c.ld,
                adds_e ? batch.e_stride : batch.c_stride,
                adds_e ? factors.added : (g.accumulate ? 1.0f : 0.0f)};
  if (g.K == 0) fail(ErrorKind::unsupported, "gemm on cuda: K is 0");
  const Product& p = prepared(exec, g, batch, e);
  check(launch(exec, p, p.algorithm, {factors.product, e.factor}, g.a.data, g.b.data, e.data,
               g.c.data),
        "launching a product");
  if (g.epilogue != GemmEpilogue::none && !adds_e) run_epilogue(exec, g, batch);
}

}  // namespace tightloop
