#include "tightloop/ops/attention/attention_cudnn.h"

#ifdef TL_CUDNN

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cudnn_graph.h>
#include <dlfcn.h>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "tightloop/core/cuda_device.h"

// cuDNN has no call for attention: one describes it as a graph of products, pointwise operations
// and reductions over (B, H, T, D) tensors, and cuDNN recognises the pattern and answers with one
// fused kernel. The graphs below are therefore written the way it expects them, not the shortest
// way.
namespace tightloop {
namespace {

// 9.11 takes minus infinity in masks and has no known fault in the backward but one: until 9.15.1
// it may read beyond keys whose number is no multiple of 128.
constexpr size_t kOldestVersion = 91100, kAnyLengthVersion = 91501;
constexpr int64_t kAlwaysGoodLength = 128;
// The deterministic backward keeps ds in memory, T x T of bf16 a head. More sequences than fit here
// are done one part of the batch after the other; one that does not fit is not served.
constexpr int64_t kScoreBytes{1 << 30};

/// The functions of libcudnn in use, looked up at run time: the program starts without the library.
struct Library {
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnGetVersion) version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
  cudnnHandle_t handle = nullptr;  // null: cuDNN cannot be used

  Library() {
    // Hopper: the only one on which the backward was seen to give the same bits each time.
    if (cuda::device_count() == 0 || cuda::device_info().compute_major != 9) return;
    void* file = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (file == nullptr) return;
    const auto find = [file](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
      return function != nullptr;
    };
    const bool complete =
        find(create, "cudnnCreate") && find(set_stream, "cudnnSetStream") &&
        find(version, "cudnnGetVersion") && find(error_string, "cudnnGetErrorString") &&
        find(create_descriptor, "cudnnBackendCreateDescriptor") &&
        find(destroy_descriptor, "cudnnBackendDestroyDescriptor") &&
        find(set_attribute, "cudnnBackendSetAttribute") &&
        find(get_attribute, "cudnnBackendGetAttribute") && find(finalize, "cudnnBackendFinalize") &&
        find(execute, "cudnnBackendExecute");
    if (!complete || version() < kOldestVersion) return;
    if (create(&handle) != CUDNN_STATUS_SUCCESS) handle = nullptr;
  }
};

const Library& library() {
  static const Library* instance = new Library;  // plans may outlive any static
  return *instance;
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  fail(ErrorKind::device, "cuDNN: {}: {}", what, library().error_string(status));
}

/// One of cuDNN's objects.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    check(library().create_descriptor(type, &object_), "making a descriptor");
  }
  ~Descriptor() { library().destroy_descriptor(object_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  cudnnBackendDescriptor_t get() const { return object_; }
  template <typename T>
  void set(cudnnBackendAttributeName_t name,
           cudnnBackendAttributeType_t type,
           const T* values,
           size_t count) {
    check(library().set_attribute(object_, name, type, static_cast<int64_t>(count), values),
          "describing a graph");
  }
  template <typename T>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    set(name, type, &value, 1);
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.object_);
  }
  /// The number of values there are; at most `count` of them are written.
  template <typename T>
  int64_t read(cudnnBackendAttributeName_t name,
               cudnnBackendAttributeType_t type,
               T* values,
               size_t count) const {
    int64_t found = 0;
    check(library().get_attribute(object_, name, type, static_cast<int64_t>(count), &found, values),
          "reading a plan");
    return found;
  }
  cudnnStatus_t try_to_finish() { return library().finalize(object_); }
  void finish() { check(try_to_finish(), "describing a graph"); }

 private:
  cudnnBackendDescriptor_t object_ = nullptr;
};

/// The tensors that are given to a plan when it runs; scalars and virtual tensors follow.
enum Operand : int64_t { kQ = 1, kK, kV, kO, kLse, kGradO, kDq, kDk, kDv, kDelta, kFirstFree };

struct Plan {
  std::unique_ptr<Descriptor> plan;
  std::vector<std::pair<int64_t, float>> scalars;  // by identifier: read when the plan runs
  int64_t workspace_bytes = 0;
};

using Dims = std::array<int64_t, 4>;
using Tensor = const Descriptor*;

/// A graph under construction. Everything virtual is float32 unless said otherwise.
class GraphBuilder {
 public:
  Tensor input(Operand id, cudnnDataType_t type, const Dims& dims, const Dims& strides) {
    return tensor(id, type, dims, strides, {});
  }
  Tensor virtual_tensor(const Dims& dims,
                        const Dims& strides,
                        cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return tensor(next_++, type, dims, strides, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
  }
  Tensor virtual_tensor(const Dims& dims, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return virtual_tensor(dims, {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1}, type);
  }
  Tensor scalar(float value) {
    plan_.scalars.emplace_back(next_, value);
    return tensor(next_++, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1},
                  CUDNN_ATTR_TENSOR_IS_BY_VALUE);
  }

  Tensor product(Tensor a, Tensor b, Tensor out) {
    Descriptor& how = hold(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.finish();
    Descriptor& op = hold(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, *a);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, *b);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, *out);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    return add(op, out);
  }

  /// mode(a), mode(a, b) or mode(a, b, choice).
  Tensor pointwise(cudnnPointwiseMode_t mode,
                   Tensor a,
                   Tensor b,
                   Tensor out,
                   cudnnDataType_t compute = CUDNN_DATA_FLOAT,
                   Tensor choice = nullptr,
                   int64_t axis = -1) {
    Descriptor& how = hold(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
    how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
    if (axis >= 0) how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
    how.finish();
    Descriptor& op = hold(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *a);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *out);
    if (b != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (choice != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *choice);
    return add(op, out);
  }

  Tensor reduction(cudnnReduceTensorOp_t mode, Tensor a, Tensor out) {
    Descriptor& how = hold(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, mode);
    how.finish();
    Descriptor& op = hold(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, *a);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, *out);
    return add(op, out);
  }

  Tensor reshape(Tensor a, Tensor out) {
    Descriptor& op = hold(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, *a);
    op.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, *out);
    return add(op, out);
  }

  /// The first plan of cuDNN's ranking that works here and always gives the same bits; none: empty.
  std::optional<Plan> finish() {
    const cudnnHandle_t handle = library().handle;
    Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations_.data(),
              operations_.size());
    if (graph.try_to_finish() != CUDNN_STATUS_SUCCESS) return {};

    Descriptor ranking(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    ranking.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    ranking.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
    if (ranking.try_to_finish() != CUDNN_STATUS_SUCCESS) return {};
    const int64_t count = ranking.read<cudnnBackendDescriptor_t>(
        CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, nullptr, 0);
    std::vector<std::unique_ptr<Descriptor>> choices;
    std::vector<cudnnBackendDescriptor_t> objects;
    for (int64_t i = 0; i < count; ++i) {
      choices.push_back(std::make_unique<Descriptor>(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
      objects.push_back(choices.back()->get());
    }
    const int64_t found =
        count == 0 ? 0
                   : ranking.read(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                  objects.data(), objects.size());
    for (int64_t i = 0; i < std::min(count, found); ++i) {
      const Descriptor& choice = *choices[static_cast<size_t>(i)];
      if (!deterministic(choice)) continue;
      auto plan = std::make_unique<Descriptor>(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
      plan->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, choice);
      if (plan->try_to_finish() != CUDNN_STATUS_SUCCESS) continue;
      plan->read(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, &plan_.workspace_bytes,
                 1);
      plan_.plan = std::move(plan);
      return std::move(plan_);
    }
    return {};
  }

 private:
  static bool deterministic(const Descriptor& choice) {
    Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendDescriptor_t object = engine.get();
    choice.read(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, &object, 1);
    std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
    const int64_t count = engine.read(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                      notes.data(), notes.size());
    return std::find(notes.begin(), notes.begin() + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ==
           notes.begin() + count;
  }

  Descriptor& hold(cudnnBackendDescriptorType_t type) {
    return *held_.emplace_back(std::make_unique<Descriptor>(type));
  }
  Tensor add(Descriptor& op, Tensor out) {
    op.finish();
    operations_.push_back(op.get());
    return out;
  }
  Tensor tensor(int64_t id,
                cudnnDataType_t type,
                const Dims& dims,
                const Dims& strides,
                std::optional<cudnnBackendAttributeName_t> property) {
    Descriptor& t = hold(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    t.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
    t.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, dims.data(), dims.size());
    t.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.data(), strides.size());
    t.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
    t.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
    if (property) t.set(*property, CUDNN_TYPE_BOOLEAN, true);
    t.finish();
    return &t;
  }

  std::vector<std::unique_ptr<Descriptor>> held_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  int64_t next_ = kFirstFree;
  Plan plan_;
};

/// One part of a problem: `rows` sequences at a time.
struct Shapes {
  int64_t rows, tokens, heads, kv_heads, dim, window;
  float scale;
  bool backward;

  auto key() const {
    return std::tuple(rows, tokens, heads, kv_heads, dim, window, scale, backward);
  }
  Dims scores() const { return {rows, heads, tokens, tokens}; }
  Dims per_query() const { return {rows, heads, tokens, 1}; }
  /// A (B, T, heads, D) tensor as (B, heads, T, D).
  Tensor heads_of(GraphBuilder& g, Operand id, int64_t count) const {
    return g.input(id, CUDNN_DATA_BFLOAT16, {rows, count, tokens, dim},
                   {tokens * count * dim, dim, count * dim, 1});
  }
  /// The same as (B, heads, D, T).
  Tensor transposed_heads_of(GraphBuilder& g, Operand id, int64_t count) const {
    return g.input(id, CUDNN_DATA_BFLOAT16, {rows, count, dim, tokens},
                   {tokens * count * dim, dim, 1, count * dim});
  }
  Tensor statistic(GraphBuilder& g, Operand id) const {
    return g.input(id, CUDNN_DATA_FLOAT, per_query(), {heads * tokens, tokens, 1, 1});
  }
};

/// `s` with minus infinity where the query (axis 2) does not see the key (axis 3).
Tensor masked(GraphBuilder& g, const Shapes& p, Tensor s) {
  const auto index = [&](int64_t axis) {
    return g.pointwise(CUDNN_POINTWISE_GEN_INDEX, s, nullptr,
                       g.virtual_tensor(p.scores(), CUDNN_DATA_INT32), CUDNN_DATA_FLOAT, nullptr,
                       axis);
  };
  const auto keep = [&](cudnnPointwiseMode_t comparison, Tensor a, Tensor b) {
    const Tensor seen = g.pointwise(
        comparison, a, b, g.virtual_tensor(p.scores(), CUDNN_DATA_BOOLEAN), CUDNN_DATA_BOOLEAN);
    s = g.pointwise(CUDNN_POINTWISE_BINARY_SELECT, s,
                    g.scalar(-std::numeric_limits<float>::infinity()), g.virtual_tensor(p.scores()),
                    CUDNN_DATA_FLOAT, seen);
  };
  const Tensor query = index(2), key = index(3);
  keep(CUDNN_POINTWISE_CMP_GE, query, key);
  if (p.window < p.tokens - 1) {
    // Keys with key + (window + 1) > query: the window does not count the query's own key.
    const Tensor row = index(2), column = index(3);
    const Tensor end =
        g.pointwise(CUDNN_POINTWISE_ADD, column, g.scalar(static_cast<float>(p.window + 1)),
                    g.virtual_tensor(p.scores()), CUDNN_DATA_FLOAT, nullptr, 3);
    keep(CUDNN_POINTWISE_CMP_GT, end, row);
  }
  return s;
}

Tensor scaled_scores(
    GraphBuilder& g, const Shapes& p, Tensor q, Tensor k_transposed, Tensor scale) {
  const Tensor s = g.product(q, k_transposed, g.virtual_tensor(p.scores()));
  return g.pointwise(CUDNN_POINTWISE_MUL, s, scale, g.virtual_tensor(p.scores()));
}

std::optional<Plan> plan_fwd(const Shapes& p) {
  GraphBuilder g;
  const Tensor q = p.heads_of(g, kQ, p.heads), v = p.heads_of(g, kV, p.kv_heads);
  const Tensor k = p.transposed_heads_of(g, kK, p.kv_heads);
  Tensor s = masked(g, p, scaled_scores(g, p, q, k, g.scalar(p.scale)));
  const Tensor max = g.reduction(CUDNN_REDUCE_TENSOR_MAX, s, g.virtual_tensor(p.per_query()));
  s = g.pointwise(CUDNN_POINTWISE_SUB, s, max, g.virtual_tensor(p.scores()));
  s = g.pointwise(CUDNN_POINTWISE_EXP, s, nullptr, g.virtual_tensor(p.scores()));
  const Tensor sum = g.reduction(CUDNN_REDUCE_TENSOR_ADD, s, g.virtual_tensor(p.per_query()));
  const Tensor log =
      g.pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, g.virtual_tensor(p.per_query()));
  g.pointwise(CUDNN_POINTWISE_ADD, max, log, p.statistic(g, kLse));
  const Tensor weights =
      g.pointwise(CUDNN_POINTWISE_DIV, s, sum, g.virtual_tensor(p.scores(), CUDNN_DATA_BFLOAT16));
  g.product(weights, v, p.heads_of(g, kO, p.heads));
  return g.finish();
}

/// out = aᵀ b for each query head, summed over the heads that share a key head.
void gradient_of_keys(GraphBuilder& g, const Shapes& p, Tensor a, Tensor b, Operand out) {
  const Dims& s = p.scores();
  const Tensor turned = g.reshape(
      a, g.virtual_tensor(s, {s[1] * s[2] * s[3], s[2] * s[3], 1, s[3]}, CUDNN_DATA_BFLOAT16));
  const Tensor total = p.heads_of(g, out, p.kv_heads);
  if (p.heads == p.kv_heads) {
    g.product(turned, b, total);
    return;
  }
  const Tensor each = g.product(
      turned, b, g.virtual_tensor({p.rows, p.heads, p.tokens, p.dim}, CUDNN_DATA_BFLOAT16));
  g.reduction(CUDNN_REDUCE_TENSOR_ADD, each, total);
}

std::optional<Plan> plan_bwd(const Shapes& p) {
  GraphBuilder g;
  const Tensor q = p.heads_of(g, kQ, p.heads), o = p.heads_of(g, kO, p.heads);
  const Tensor grad_o = p.heads_of(g, kGradO, p.heads);
  const Tensor k = p.transposed_heads_of(g, kK, p.kv_heads);
  const Tensor v = p.transposed_heads_of(g, kV, p.kv_heads);
  const Tensor scale = g.scalar(p.scale);

  const Tensor products = g.pointwise(CUDNN_POINTWISE_MUL, grad_o, o,
                                      g.virtual_tensor({p.rows, p.heads, p.tokens, p.dim}));
  Tensor delta = g.reduction(CUDNN_REDUCE_TENSOR_ADD, products, g.virtual_tensor(p.per_query()));
  delta = g.pointwise(CUDNN_POINTWISE_MUL, delta, g.scalar(1.0f), p.statistic(g, kDelta));

  Tensor s = scaled_scores(g, p, q, k, scale);
  s = g.pointwise(CUDNN_POINTWISE_SUB, s, p.statistic(g, kLse), g.virtual_tensor(p.scores()));
  s = masked(g, p, s);
  const Tensor weights = g.pointwise(CUDNN_POINTWISE_EXP, s, nullptr, g.virtual_tensor(p.scores()));
  gradient_of_keys(g, p, weights, grad_o, kDv);

  Tensor ds = g.product(grad_o, v, g.virtual_tensor(p.scores()));
  ds = g.pointwise(CUDNN_POINTWISE_SUB, ds, delta, g.virtual_tensor(p.scores()));
  ds = g.pointwise(CUDNN_POINTWISE_MUL, ds, weights, g.virtual_tensor(p.scores()));
  ds = g.pointwise(CUDNN_POINTWISE_MUL, ds, scale, g.virtual_tensor(p.scores()));
  gradient_of_keys(g, p, ds, q, kDk);

  // This product without a float32 sum in memory is what cuDNN takes for "the same bits each time".
  const int64_t row = p.kv_heads * p.dim;
  const Tensor keys =
      g.reshape(k, g.virtual_tensor({p.rows, p.kv_heads, p.tokens, p.dim},
                                    {p.tokens * row, p.dim, row, 1}, CUDNN_DATA_BFLOAT16));
  g.product(ds, keys, p.heads_of(g, kDq, p.heads));
  return g.finish();
}

std::mutex cache_mutex;
std::atomic<bool> enabled = true;

/// The plan for these shapes, made once; null where there is none.
const Plan* plan_of(const Shapes& p) {
  static auto* plans = new std::map<decltype(p.key()), std::optional<Plan>>;
  if (cuda::generic_arch() || !enabled || library().handle == nullptr) return nullptr;
  if (p.tokens % kAlwaysGoodLength != 0 && library().version() < kAnyLengthVersion) return nullptr;
  const std::lock_guard lock(cache_mutex);
  auto at = plans->find(p.key());
  if (at == plans->end()) {
    at = plans->try_emplace(p.key()).first;
    try {
      at->second = p.backward ? plan_bwd(p) : plan_fwd(p);
    } catch (const Error&) {  // it refuses even to describe the graph: not served
    }
  }
  return at->second ? &*at->second : nullptr;
}

int64_t rounded(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

std::optional<Shapes> shapes_of(const AttentionProblem& a) {
  const Shape& q = a.q.shape;
  if (a.q.dtype != DType::bf16 || q[1] < 2 || q[3] > 128 || q[3] % 8 != 0) return {};
  if (a.q.elems() > std::numeric_limits<int32_t>::max()) return {};  // untried
  int64_t parts = 1;
  if (a.backward) {
    const int64_t one = q[2] * rounded(q[1], 64) * rounded(q[1], 128) * 2;
    if (one > kScoreBytes) return {};
    while (parts < q[0] && (q[0] % parts != 0 || q[0] / parts * one > kScoreBytes)) ++parts;
  }
  return Shapes{.rows = q[0] / parts,
                .tokens = q[1],
                .heads = q[2],
                .kv_heads = a.k.shape[2],
                .dim = q[3],
                .window = std::min(a.window, q[1] - 1),
                .scale = static_cast<float>(a.softmax_scale),
                .backward = a.backward};
}

/// Bytes of delta, in scratch before cuDNN's own workspace.
int64_t delta_bytes(const Shapes& p) {
  return p.backward ? rounded(p.rows * p.heads * p.tokens * int64_t{sizeof(float)}, 256) : 0;
}

/// A tensor given to a plan, and its bytes in one sequence.
struct Given {
  Operand id;
  const void* data;
  int64_t row_bytes;
};

Given given(Operand id, const ConstTensorView& view) {
  return {id, view.data, view.bytes() / view.shape()[0]};
}

/// Runs the plan for every part of the batch.
bool run(const Exec& exec, const AttentionProblem& problem, std::initializer_list<Given> tensors) {
  const std::optional<Shapes> shapes = shapes_of(problem);
  const Plan* plan = shapes ? plan_of(*shapes) : nullptr;
  if (plan == nullptr) return false;
  const Shapes& p = *shapes;
  if (static_cast<int64_t>(exec.scratch.size()) < delta_bytes(p) + plan->workspace_bytes)
    return false;
  for (const Given& t : tensors)
    if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;

  const std::lock_guard lock(cache_mutex);  // the handle carries the stream
  check(library().set_stream(library().handle, static_cast<cudaStream_t>(exec.stream)),
        "choosing the stream");
  for (int64_t first = 0; first < problem.q.shape[0]; first += p.rows) {
    std::vector<int64_t> ids;
    std::vector<const void*> data;
    for (const Given& t : tensors) {
      ids.push_back(t.id);
      data.push_back(static_cast<const std::byte*>(t.data) + first * t.row_bytes);
    }
    if (p.backward) {
      ids.push_back(kDelta);
      data.push_back(exec.scratch.data());
    }
    for (const auto& [id, value] : plan->scalars) {
      ids.push_back(id);
      data.push_back(&value);
    }
    const void* workspace = exec.scratch.data() + delta_bytes(p);
    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids.data(), ids.size());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, data.data(), data.size());
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
    pack.finish();
    check(library().execute(library().handle, plan->plan->get(), pack.get()),
          p.backward ? "attention_bwd" : "attention");
  }
  return true;
}

}  // namespace

std::optional<int64_t> cudnn_attention_scratch_bytes(const AttentionProblem& problem) {
  const std::optional<Shapes> shapes = shapes_of(problem);
  const Plan* plan = shapes ? plan_of(*shapes) : nullptr;
  if (plan == nullptr) return {};
  return delta_bytes(*shapes) + plan->workspace_bytes;
}

bool cudnn_attention_fwd(const Exec& exec, const AttentionFwd& a) {
  return run(exec, {a.q.type, a.k.type, a.window, a.softmax_scale, false},
             {given(kQ, a.q), given(kK, a.k), given(kV, a.v), given(kO, a.o), given(kLse, a.lse)});
}

bool cudnn_attention_bwd(const Exec& exec, const AttentionBwd& a) {
  return run(
      exec, {a.q.type, a.k.type, a.window, a.softmax_scale, true},
      {given(kGradO, a.grad_o), given(kQ, a.q), given(kK, a.k), given(kV, a.v), given(kO, a.o),
       given(kLse, a.lse), given(kDq, a.dq), given(kDk, a.dk), given(kDv, a.dv)});
}

int64_t cudnn_attention_version() {
  if (cuda::generic_arch() || library().handle == nullptr) return 0;
  return static_cast<int64_t>(library().version());
}

bool set_cudnn_attention(bool on) {
  return enabled.exchange(on);
}

}  // namespace tightloop

#else  // no cuDNN in this build

namespace tightloop {

std::optional<int64_t> cudnn_attention_scratch_bytes(const AttentionProblem&) {
  return {};
}
bool cudnn_attention_fwd(const Exec&, const AttentionFwd&) {
  return false;
}
bool cudnn_attention_bwd(const Exec&, const AttentionBwd&) {
  return false;
}
int64_t cudnn_attention_version() {
  return 0;
}
bool set_cudnn_attention(bool) {
  return false;
}

}  // namespace tightloop

#endif
