#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

/// For tests: counts the allocations of the process, on all its threads, by replacing operator new.
/// One file of a program may include it. Sanitizers bring operators of their own: there it counts
/// nothing.
namespace tightloop {

inline std::atomic<int64_t> allocations_made{0};

#ifdef TL_SANITIZED
inline constexpr bool kCountsAllocations = false;
#else
inline constexpr bool kCountsAllocations = true;
#endif

}  // namespace tightloop

#ifndef TL_SANITIZED
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++tightloop::allocations_made;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
#endif
