#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace tightloop {

/// Threads that parallel loops use: OMP_NUM_THREADS or the number of cores, until set.
int thread_count();
/// Error{usage} when n < 1.
void set_thread_count(int n);
/// True inside a parallel loop of ours. A BLAS must not be called then.
bool in_parallel();
/// Index of the calling thread inside a parallel loop of ours, below thread_count(); 0 outside. For
/// choosing a private scratch buffer, never for anything a result depends on.
int thread_index();

namespace detail {
using ParallelBody = void (*)(void* context, int64_t begin, int64_t end, int part);
void parallel_ranges(int64_t count, int64_t parts, ParallelBody body, void* context);
}  // namespace detail

/// Splits 0..count into `parts` near-equal contiguous ranges and calls body(begin, end, part) for
/// each, on all threads, dynamically scheduled. The partition depends on `parts` alone, never on
/// the thread count: reductions over a fixed number of parts give the same bits on any machine.
/// Nested calls run serially. Exceptions thrown by the body are rethrown in the caller.
template <typename Body>
void parallel_parts(int64_t count, int64_t parts, Body&& body) {
  using Fn = std::remove_reference_t<Body>;
  detail::parallel_ranges(
      count, parts,
      [](void* context, int64_t begin, int64_t end, int part) {
        (*static_cast<Fn*>(context))(begin, end, part);
      },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Calls body(begin, end) over ranges of at least `grain` items that cover 0..count. For loops
/// whose iterations are independent: the split follows the thread count.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  int64_t parts = (count + grain - 1) / (grain < 1 ? 1 : grain);
  const int64_t most = int64_t{thread_count()} * 4;
  if (parts > most) parts = most;
  parallel_parts(count, parts, [&](int64_t begin, int64_t end, int) { body(begin, end); });
}

}  // namespace tightloop
