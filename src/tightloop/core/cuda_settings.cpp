#include <atomic>

#include "tightloop/core/cuda_device.h"

namespace tightloop::cuda {
namespace {

std::atomic<bool> g_generic_arch{false}, g_debug_sync{false};

}  // namespace

bool generic_arch() {
  return g_generic_arch.load(std::memory_order_relaxed);
}
void set_generic_arch(bool on) {
  g_generic_arch = on;
}
bool debug_sync() {
  return g_debug_sync.load(std::memory_order_relaxed);
}
void set_debug_sync(bool on) {
  g_debug_sync = on;
}

}  // namespace tightloop::cuda
