#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "tightloop/core/exec.h"

namespace tightloop {

/// Memory that can still be taken for a device: the driver's count on cuda, else the system's.
int64_t memory_available_on(Device device);

/// Memory of a run's plan at a micro-batch and a depth, bytes. Grows with both.
using PlannedBytes = std::function<int64_t(int64_t micro_batch, int64_t depth)>;

/// The next step when a plan does not fit: "use `--device-batch-size 16`", the largest divisor of
/// `rows_per_step` below `micro_batch` whose plan fits `available` bytes, so that no micro-batch of
/// a step is partly empty; but a power of two when one fits that is over twice as large (rows of a
/// prime number). Where not even 1 fits, the largest depth that does with it:
/// "use `--depth 7 --device-batch-size 1`". Plans a handful of times.
std::string memory_hint(int64_t micro_batch,
                        int64_t rows_per_step,
                        int64_t depth,
                        int64_t available,
                        const PlannedBytes& planned_bytes);

}  // namespace tightloop
