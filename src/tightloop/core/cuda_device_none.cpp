// What core/cuda_device.h is in a build without CUDA.
#ifndef TL_CUDA

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"

namespace tightloop::cuda {
namespace {

[[noreturn]] void not_built() {
  throw Error(ErrorKind::unsupported, "no CUDA device: this program was built without CUDA")
      .with_hint(
          "build with `cmake --preset cuda && cmake --build --preset cuda` (CUDA toolkit 13)");
}

}  // namespace

bool built() {
  return false;
}
int device_count() {
  return 0;
}
void expect_device() {
  not_built();
}
DeviceInfo device_info() {
  not_built();
}
int64_t free_bytes() {
  not_built();
}
std::byte* allocate(int64_t) {
  not_built();
}
void release(std::byte*) {}
std::byte* allocate_pinned(int64_t) {
  not_built();
}
void release_pinned(std::byte*) {}
int64_t allocations() {
  return 0;
}
void* stream() {
  not_built();
}
void synchronize() {
  not_built();
}
int64_t synchronizations() {
  return 0;
}
void copy_to_device(void*, const void*, int64_t) {
  not_built();
}
void copy_to_host(void*, const void*, int64_t) {
  not_built();
}
void enqueue_copy_to_device(void*, const void*, int64_t) {
  not_built();
}
void enqueue_copy_to_host(void*, const void*, int64_t) {
  not_built();
}
void enqueue_copy_on_device(void*, const void*, int64_t) {
  not_built();
}
void enqueue_upload(void*, const void*, int64_t) {
  not_built();
}
Event::Event() : event_(nullptr) {
  not_built();
}
Event::~Event() = default;
void Event::record() {}
void Event::record_upload() {}
void Event::hold_stream() const {}
void Event::hold_uploads() const {}
void Event::wait() const {}
double Event::seconds(const Event&, const Event&) {
  not_built();
}
Graph::~Graph() = default;
void Graph::begin_capture() {
  not_built();
}
void Graph::abandon_capture() {}
void Graph::end_capture() {}
void Graph::launch() const {
  not_built();
}
void check_launch(const char*) {}

}  // namespace tightloop::cuda

#endif
