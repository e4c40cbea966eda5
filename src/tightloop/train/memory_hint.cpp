#include "tightloop/train/memory_hint.h"

#include <fmt/format.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/io/host_info.h"

namespace tightloop {
namespace {

/// The largest i in [0, n) for which fits(i) holds, where it holds up to some i; -1 if there is
/// none.
template <typename Fits>
int64_t last_that_fits(int64_t n, Fits&& fits) {
  int64_t low = -1, high = n;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace

int64_t memory_available_on(Device device) {
  return device == Device::cuda ? cuda::free_bytes() : memory_available_bytes();
}

std::string memory_hint(int64_t micro_batch,
                        int64_t depth,
                        int64_t available,
                        const PlannedBytes& planned_bytes) {
  int64_t powers = 0;  // of two, below micro_batch
  while ((int64_t{1} << powers) < micro_batch) ++powers;
  const int64_t power = last_that_fits(
      powers, [&](int64_t i) { return planned_bytes(int64_t{1} << i, depth) <= available; });
  if (power >= 0) return fmt::format("use `--device-batch-size {}`", int64_t{1} << power);
  const int64_t fitting = 1 + last_that_fits(depth - 1, [&](int64_t i) {
                            return planned_bytes(1, i + 1) <= available;
                          });
  if (fitting == 0) return "not even one layer and a micro-batch of one fit: free some memory";
  return fmt::format("use `--depth {}{}`", fitting,
                     micro_batch > 1 ? " --device-batch-size 1" : "");
}

}  // namespace tightloop
