#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

/// The CUDA device as the rest of the program sees it: no CUDA header needed. One device a process,
/// one stream for all work and one for uploads beside it. In a build without CUDA what needs a
/// device throws Error{unsupported}.
namespace tightloop::cuda {

/// Whether this program was built with CUDA.
bool built();
/// Devices that can be used now; 0 in a build without CUDA.
int device_count();
/// Error{unsupported} in a build without CUDA, Error{device} when no device can be used; the
/// message says why, the hint what to do next.
void expect_device();

/// --arch generic: only what every supported GPU has (sm_80 and later) is used, on any of them. No
/// kernel, library or rewrite that is made for one architecture. Set before Programs are built.
bool generic_arch();
void set_generic_arch(bool on);

/// --debug-sync: Programs run operation by operation, each waited for, so that an error in one is
/// found there and not at a later wait.
bool debug_sync();
void set_debug_sync(bool on);

struct DeviceInfo {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  int64_t total_bytes = 0;
  std::string driver_version, runtime_version;  // of CUDA: "13.0"
};
DeviceInfo device_info();
/// Device memory that can still be allocated, from the driver.
int64_t free_bytes();

/// Zeroed device memory. Error{oom} with the size.
std::byte* allocate(int64_t bytes);
void release(std::byte* memory);
/// Page-locked host memory, zeroed, which copies run from without a detour.
std::byte* allocate_pinned(int64_t bytes);
void release_pinned(std::byte* memory);

/// Allocations of both kinds so far: a training step after warm-up must not add to it.
int64_t allocations();

/// The process's stream (a cudaStream_t): everything is ordered on it.
void* stream();
/// Waits for the stream. Error{device} with what went wrong in it.
void synchronize();
/// Waits for the stream so far, copies included: a training step after warm-up must not add to it.
/// Waits for an Event are not counted.
int64_t synchronizations();
/// Copies that have ended when the call returns.
void copy_to_device(void* device, const void* host, int64_t bytes);
void copy_to_host(void* host, const void* device, int64_t bytes);
/// Enqueued copies; the host memory should be pinned and must stay as it is until they have run.
void enqueue_copy_to_device(void* device, const void* host, int64_t bytes);
void enqueue_copy_to_host(void* host, const void* device, int64_t bytes);

void enqueue_copy_on_device(void* to, const void* from, int64_t bytes);
/// As enqueue_copy_to_device() on a second stream, beside what stream() computes. What orders the
/// two are Events.
void enqueue_upload(void* device, const void* host, int64_t bytes);

/// A point in a stream. Only between two that record() made can the time be read.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record();
  /// The same in the stream of uploads.
  void record_upload();
  /// What is enqueued later on stream(), or as uploads, runs after the recorded point; at once
  /// before the first record.
  void hold_stream() const;
  void hold_uploads() const;
  /// Waits until the stream has passed the recorded point; returns at once before the first record.
  void wait() const;
  /// Seconds between two recorded points that the stream has passed.
  static double seconds(const Event& from, const Event& to);

 private:
  void* event_;
};

/// Work captured from the stream once and replayed as one launch.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Calls `enqueue()`, which only launches work on stream(), and keeps what it launched.
  template <typename Fn>
  void capture(Fn&& enqueue) {
    begin_capture();
    try {
      enqueue();
    } catch (...) {
      abandon_capture();
      throw;
    }
    end_capture();
  }
  bool captured() const { return executable_ != nullptr; }
  void launch() const;

 private:
  static void begin_capture();
  static void abandon_capture();
  void end_capture();
  void* executable_ = nullptr;
};

/// Error{device} naming `what` when a launch just made was refused.
void check_launch(const char* what);

}  // namespace tightloop::cuda
