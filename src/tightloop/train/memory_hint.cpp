#include "tightloop/train/memory_hint.h"

#include <bit>
#include <vector>

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
                        int64_t rows_per_step,
                        int64_t depth,
                        int64_t available,
                        const PlannedBytes& planned_bytes) {
  std::vector<int64_t> divisors, powers;  // below micro_batch
  for (int64_t b = 1; b < micro_batch; ++b) {
    if (rows_per_step % b == 0) divisors.push_back(b);
    if (std::has_single_bit(static_cast<uint64_t>(b))) powers.push_back(b);
  }
  const auto largest_of = [&](const std::vector<int64_t>& sizes) {
    const int64_t i = last_that_fits(std::ssize(sizes), [&](int64_t at) {
      return planned_bytes(sizes[static_cast<size_t>(at)], depth) <= available;
    });
    return i < 0 ? 0 : sizes[static_cast<size_t>(i)];
  };
  const int64_t divisor = largest_of(divisors);
  const int64_t power = divisor == 0 ? 0 : largest_of(powers);
  if (divisor > 0)
    return fmt::format("use `--device-batch-size {}`", power > 2 * divisor ? power : divisor);
  const int64_t fitting = 1 + last_that_fits(depth - 1, [&](int64_t i) {
                            return planned_bytes(1, i + 1) <= available;
                          });
  if (fitting == 0) return "not even one layer and a micro-batch of one fit: free some memory";
  return fmt::format("use `--depth {}{}`", fitting,
                     micro_batch > 1 ? " --device-batch-size 1" : "");
}

}  // namespace tightloop
