#include <atomic>
#include <cstdlib>
#include <cuda_runtime.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"

namespace tightloop::cuda {
namespace {

std::atomic<int64_t> g_synchronizations{0}, g_allocations{0};

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const ErrorKind kind = status == cudaErrorMemoryAllocation ? ErrorKind::oom : ErrorKind::device;
  const char* name = cudaGetErrorName(status);
  const char* text = cudaGetErrorString(status);
  cudaGetLastError();  // a later call must not report this one again
  fail(kind, "CUDA: {}: {} ({})", what, text, name);
}

/// As check(), for calls that wait: what went wrong is anything enqueued before.
void check_waited(cudaError_t status, const char* what) {
  try {
    check(status, what);
  } catch (Error& e) {
    if (!debug_sync())
      e.with_hint(
          "it was found at a later wait: run again with `--debug-sync`, which names the "
          "operation");
    throw;
  }
}

cudaStream_t make_stream() {
  cudaStream_t made;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
  return made;
}

cudaStream_t the_stream() {
  static cudaStream_t stream = make_stream();
  return stream;
}

cudaStream_t upload_stream() {
  static cudaStream_t stream = make_stream();
  return stream;
}

std::string size_text(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 0x1p20);
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

/// Why the runtime counts no device, and what to do next.
Error no_device(cudaError_t status) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);  // 0 without a driver, which the status does not tell
  cudaRuntimeGetVersion(&runtime);
  cudaGetLastError();
  const auto error = [](std::string reason, std::string hint) {
    Error made(ErrorKind::device, "no CUDA device: " + reason);
    made.with_hint(std::move(hint));
    return made;
  };
  if (driver == 0)
    return error("no NVIDIA driver was found",
                 fmt::format("`nvidia-smi` must list a GPU: install a driver for CUDA {} or later; "
                             "a container must be started with its GPUs (docker: --gpus all)",
                             version_text(runtime)));
  if (status == cudaErrorInsufficientDriver)
    return error(fmt::format("the NVIDIA driver is for CUDA {}, this build needs {}",
                             version_text(driver), version_text(runtime)),
                 fmt::format("update the driver to one for CUDA {} or later; `nvidia-smi` says "
                             "which one runs",
                             version_text(runtime)));
  if (status == cudaSuccess || status == cudaErrorNoDevice) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    if (visible != nullptr)
      return error(fmt::format("CUDA_VISIBLE_DEVICES is '{}', which leaves none", visible),
                   "unset CUDA_VISIBLE_DEVICES, or name a GPU that `nvidia-smi -L` lists");
    return error("the NVIDIA driver finds no GPU",
                 "`nvidia-smi -L` must list one; a container must be started with its GPUs "
                 "(docker: --gpus all)");
  }
  return error(fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status)),
               "`nvidia-smi` says in what state driver and GPU are");
}

}  // namespace

bool built() {
  return true;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

void expect_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) throw no_device(status);
}

DeviceInfo device_info() {
  expect_device();
  cudaDeviceProp prop;
  check(cudaGetDeviceProperties(&prop, 0), "reading the device's properties");
  DeviceInfo info{.name = prop.name,
                  .compute_major = prop.major,
                  .compute_minor = prop.minor,
                  .multiprocessors = prop.multiProcessorCount,
                  .total_bytes = static_cast<int64_t>(prop.totalGlobalMem)};
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "reading the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "reading the runtime's version");
  info.driver_version = version_text(driver);
  info.runtime_version = version_text(runtime);
  return info;
}

int64_t free_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return static_cast<int64_t>(free);
}

std::byte* allocate(int64_t bytes) {
  ++g_allocations;
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::oom, "cannot allocate {} on the device, which has {} free", size_text(bytes),
         size_text(free_bytes()));
  }
  check(status, "allocating memory");
  check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), the_stream()), "zeroing memory");
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory) {
  cudaFree(memory);  // waits for the device; an error was reported where it arose
}

std::byte* allocate_pinned(int64_t bytes) {
  ++g_allocations;
  void* memory = nullptr;
  check(cudaMallocHost(&memory, static_cast<size_t>(bytes)), "allocating page-locked memory");
  std::fill_n(static_cast<std::byte*>(memory), bytes, std::byte{0});
  return static_cast<std::byte*>(memory);
}

void release_pinned(std::byte* memory) {
  cudaFreeHost(memory);
}

int64_t allocations() {
  return g_allocations.load();
}

void* stream() {
  return the_stream();
}

void synchronize() {
  ++g_synchronizations;
  check_waited(cudaStreamSynchronize(the_stream()), "running the enqueued work");
}

int64_t synchronizations() {
  return g_synchronizations.load();
}

void copy_to_device(void* device, const void* host, int64_t bytes) {
  enqueue_copy_to_device(device, host, bytes);
  synchronize();
}

void copy_to_host(void* host, const void* device, int64_t bytes) {
  enqueue_copy_to_host(host, device, bytes);
  synchronize();
}

void enqueue_copy_to_device(void* device, const void* host, int64_t bytes) {
  check(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                        the_stream()),
        "copying to the device");
}

void enqueue_copy_to_host(void* host, const void* device, int64_t bytes) {
  check(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                        the_stream()),
        "copying to the host");
}

void enqueue_copy_on_device(void* to, const void* from, int64_t bytes) {
  check(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, the_stream()),
      "copying on the device");
}

void enqueue_upload(void* device, const void* host, int64_t bytes) {
  check(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                        upload_stream()),
        "uploading to the device");
}

Event::Event() {
  cudaEvent_t made;
  check(cudaEventCreate(&made), "making an event");
  event_ = made;
}

Event::~Event() {
  cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Event::record() {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), the_stream()), "recording an event");
}

void Event::record_upload() {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), upload_stream()), "recording an event");
}

void Event::hold_stream() const {
  check(cudaStreamWaitEvent(the_stream(), static_cast<cudaEvent_t>(event_)), "ordering streams");
}

void Event::hold_uploads() const {
  check(cudaStreamWaitEvent(upload_stream(), static_cast<cudaEvent_t>(event_)), "ordering streams");
}

void Event::wait() const {
  check_waited(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "running the enqueued work");
}

double Event::seconds(const Event& from, const Event& to) {
  float ms = 0.0f;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(from.event_),
                             static_cast<cudaEvent_t>(to.event_)),
        "reading the time between events");
  return static_cast<double>(ms) * 1e-3;
}

Graph::~Graph() {
  if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void Graph::begin_capture() {
  check(cudaStreamBeginCapture(the_stream(), cudaStreamCaptureModeThreadLocal),
        "beginning a capture");
}

void Graph::abandon_capture() {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(the_stream(), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void Graph::end_capture() {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(the_stream(), &graph), "capturing");
  cudaGraphExec_t made = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&made, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "making a graph executable");
  executable_ = made;
}

void Graph::launch() const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), the_stream()),
        "launching a graph");
}

void check_launch(const char* what) {
  check(cudaGetLastError(), what);
}

}  // namespace tightloop::cuda
