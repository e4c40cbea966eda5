#pragma once

#include <array>
#include <cstdint>

namespace tightloop {

/// Philox4x32-10, a counter-based generator: output is a pure function of (key, stream, counter),
/// so any element of any stream can be computed alone, in any order, on any machine, with the same
/// bits. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox4x32(uint64_t key, uint64_t stream, uint64_t counter);

/// Sequential draws from one stream.
class Rng {
 public:
  Rng(uint64_t key, uint64_t stream) : key_(key), stream_(stream) {}

  uint32_t next_u32();
  uint64_t next_u64() {
    const uint64_t low = next_u32();
    return low | (static_cast<uint64_t>(next_u32()) << 32);
  }
  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }
  /// Uniform integer in [0, n), n > 0, without modulo bias.
  uint64_t below(uint64_t n);
  /// Standard normal (Box-Muller; both values of a pair are used).
  double normal();

 private:
  uint64_t key_;
  uint64_t stream_;
  uint64_t counter_ = 0;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;
  bool have_normal_ = false;
  double spare_normal_ = 0.0;
};

/// x[i] = low + (high - low) * u(i), with u(i) a pure function of (key, stream, i). Parallel.
void fill_uniform(float* x, int64_t n, uint64_t key, uint64_t stream, float low, float high);
/// x[i] = mean + stddev * z(i), z standard normal, a pure function of (key, stream, i). Parallel.
void fill_normal(float* x, int64_t n, uint64_t key, uint64_t stream, float mean, float stddev);

}  // namespace tightloop
