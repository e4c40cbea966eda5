#include "tightloop/core/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "tightloop/core/error.h"

#ifndef TL_THREADS_STD
#include <omp.h>
#endif

namespace tightloop {
namespace {

std::atomic<int> g_threads{0};
thread_local bool t_in_parallel = false;
thread_local int t_index = 0;

int default_threads() {
#ifdef TL_THREADS_STD
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#else
  return std::max(1, omp_get_max_threads());
#endif
}

}  // namespace

int thread_count() {
  const int n = g_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  const int detected = default_threads();
  g_threads.store(detected, std::memory_order_relaxed);
  return detected;
}

void set_thread_count(int n) {
  if (n < 1) fail(ErrorKind::usage, "threads must be at least 1, got {}", n);
  g_threads.store(n, std::memory_order_relaxed);
#ifndef TL_THREADS_STD
  omp_set_num_threads(n);
#endif
}

bool in_parallel() {
  return t_in_parallel;
}
int thread_index() {
  return t_index;
}

namespace detail {

void parallel_ranges(int64_t count, int64_t parts, ParallelBody body, void* context) {
  if (count <= 0) return;
  parts = std::clamp<int64_t>(parts, 1, count);
  const auto run_part = [&](int64_t part) {
    const int64_t begin = part * count / parts;
    const int64_t end = (part + 1) * count / parts;
    body(context, begin, end, static_cast<int>(part));
  };
  const int threads = static_cast<int>(std::min<int64_t>(thread_count(), parts));
  if (threads <= 1 || t_in_parallel) {
    for (int64_t part = 0; part < parts; ++part) run_part(part);
    return;
  }

  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto worker = [&](int index) {
    t_in_parallel = true;
    t_index = index;
    try {
      for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
        if (failed.load(std::memory_order_relaxed)) break;
        run_part(part);
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    t_in_parallel = false;
    t_index = 0;
  };
#ifdef TL_THREADS_STD
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(worker, i);
  worker(0);
  for (std::thread& t : pool) t.join();
#else
#pragma omp parallel num_threads(threads)
  worker(omp_get_thread_num());
#endif
  if (error) std::rethrow_exception(error);
}

}  // namespace detail
}  // namespace tightloop
