#include "tightloop/core/rng.h"

#include <cmath>
#include <numbers>

#include "tightloop/core/threads.h"

namespace tightloop {

std::array<uint32_t, 4> philox4x32(uint64_t key, uint64_t stream, uint64_t counter) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  std::array<uint32_t, 4> c{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                            static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMultiplier0 * c[0], p1 = kMultiplier1 * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

uint32_t Rng::next_u32() {
  if (used_ == 4) {
    block_ = philox4x32(key_, stream_, counter_++);
    used_ = 0;
  }
  return block_[static_cast<size_t>(used_++)];
}

uint64_t Rng::below(uint64_t n) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % n;  // a multiple of n
  uint64_t x = next_u64();
  while (x >= limit) x = next_u64();
  return x % n;
}

double Rng::normal() {
  if (have_normal_) {
    have_normal_ = false;
    return spare_normal_;
  }
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  const double angle = 2.0 * std::numbers::pi * uniform();
  have_normal_ = true;
  spare_normal_ = radius * std::sin(angle);
  return radius * std::cos(angle);
}

namespace {

/// Calls body(values, i) for i = 0, 4, 8, …: four raw draws for elements i..i+3.
template <typename Body>
void for_each_block(int64_t n, uint64_t key, uint64_t stream, Body&& body) {
  const int64_t blocks = (n + 3) / 4;
  parallel_for(blocks, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      body(philox4x32(key, stream, static_cast<uint64_t>(b)), b * 4);
  });
}

}  // namespace

void fill_uniform(float* x, int64_t n, uint64_t key, uint64_t stream, float low, float high) {
  for_each_block(n, key, stream, [&](const std::array<uint32_t, 4>& raw, int64_t i) {
    for (int64_t j = 0; j < 4 && i + j < n; ++j) {
      const float u = static_cast<float>(raw[static_cast<size_t>(j)] >> 8) * 0x1.0p-24f;
      x[i + j] = low + (high - low) * u;
    }
  });
}

void fill_normal(float* x, int64_t n, uint64_t key, uint64_t stream, float mean, float stddev) {
  for_each_block(n, key, stream, [&](const std::array<uint32_t, 4>& raw, int64_t i) {
    for (int64_t j = 0; j < 4 && i + j < n; j += 2) {
      const double u1 = (static_cast<double>(raw[static_cast<size_t>(j)]) + 0.5) * 0x1.0p-32;
      const double u2 = static_cast<double>(raw[static_cast<size_t>(j) + 1]) * 0x1.0p-32;
      const double radius = std::sqrt(-2.0 * std::log(u1));
      const double angle = 2.0 * std::numbers::pi * u2;
      x[i + j] = mean + stddev * static_cast<float>(radius * std::cos(angle));
      if (j + 1 < 4 && i + j + 1 < n)
        x[i + j + 1] = mean + stddev * static_cast<float>(radius * std::sin(angle));
    }
  });
}

}  // namespace tightloop
