#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace tightloop {

/// Where an operation runs. `ref` is the float64 scalar truth: every float tensor is f64 there.
enum class Device { ref, cpu, cuda };

std::string_view name_of(Device device);
/// Error{usage} for an unknown name; Error{unsupported} for a device this build does not have;
/// Error{device} when there is no such device here.
Device parse_device(std::string_view name);

/// Everything an operation may use besides its arguments. Scratch belongs to the operation until it
/// returns; it is at least as large as the operation's scratch function asked for, 64-byte aligned.
struct Exec {
  Device device = Device::cpu;
  std::span<std::byte> scratch;
  void* stream = nullptr;  // cudaStream_t on cuda, where views and scratch are device memory
};

}  // namespace tightloop
