#include "tightloop/engine/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/ceilings_cuda.h"
#include "tightloop/engine/memory.h"
#include "tightloop/ops/common/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tightloop {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChains = 12;                     // independent sums: more than latency x units needs
constexpr int64_t kFmaRounds = 40'000;          // of one part: about 0.1 ms
constexpr int64_t kWindow = int64_t{32} << 20;  // timed as one: short, so that some run undisturbed
constexpr int64_t kPart = int64_t{256} << 10;
constexpr int kRepeats = 3;  // at least

/// What the loops computed goes here, so that no compiler leaves them out.
volatile float g_sink = 0.0f;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Each does `rounds` of kChains multiply-adds on full registers and returns a sum of them.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) float fma_avx512(int64_t rounds) {
  const __m512 x = _mm512_set1_ps(0.9999f), y = _mm512_set1_ps(1e-4f);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx2,fma"))) float fma_avx2(int64_t rounds) {
  const __m256 x = _mm256_set1_ps(0.9999f), y = _mm256_set1_ps(1e-4f);
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return _mm256_cvtss_f32(sums[0]);
}
#endif

#if defined(__aarch64__)
float fma_neon(int64_t rounds) {
  const float32x4_t x = vdupq_n_f32(0.9999f), y = vdupq_n_f32(1e-4f);
  float32x4_t sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = vdupq_n_f32(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = vfmaq_f32(y, sums[i], x);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = vaddq_f32(sums[0], sums[i]);
  return vgetq_lane_f32(sums[0], 0);
}
#endif

/// Multiply, then add, on registers of 16 bytes: what machines without fused multiply-add do.
float fma_portable(int64_t rounds) {
  using Lanes [[gnu::vector_size(16)]] = float;
  const Lanes x = {0.9999f, 0.9999f, 0.9999f, 0.9999f}, y = {1e-4f, 1e-4f, 1e-4f, 1e-4f};
  Lanes sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = Lanes{} + static_cast<float>(i);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * x + y;
  }
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  return sums[0][0];
}

struct FmaKernel {
  std::string_view name;
  int lanes = 0;
  float (*run)(int64_t rounds) = nullptr;
};

FmaKernel fma_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {"avx512", 16, fma_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", 8, fma_avx2};
#elif defined(__aarch64__)
  return {"neon", 4, fma_neon};
#endif
  return {"portable", 4, fma_portable};
}

TL_CLONES uint32_t read_all(const uint32_t* x, int64_t n) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

TL_CLONES void update_all(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 0.9999f * x[i] + 1e-4f;
}

/// Calls `pass(k)` for k = 0, 1, … until the budget is used; the largest units / second of one.
template <typename Pass>
double best_rate(double budget_seconds, double units, Pass&& pass) {
  double best = 0.0;
  const Clock::time_point begin = Clock::now();
  for (int k = 0; k < kRepeats || seconds_since(begin) < budget_seconds; ++k) {
    const Clock::time_point start = Clock::now();
    pass(k);
    best = std::max(best, units / std::max(1e-9, seconds_since(start)));
  }
  return best;
}

/// body(offset, bytes) over all parts of `bytes` bytes.
template <typename Body>
void over_parts(int64_t bytes, Body&& body) {
  parallel_parts(bytes / kPart, bytes / kPart, [&](int64_t begin, int64_t end, int) {
    body(begin * kPart, (end - begin) * kPart);
  });
}

/// Twice the last cache, so that no window is still in it when its turn comes again; two windows at
/// least for each half, and 1 GiB at most.
int64_t stream_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const int64_t last_cache = std::max<int64_t>(0, ::sysconf(_SC_LEVEL3_CACHE_SIZE));
#else
  const int64_t last_cache = 0;
#endif
  const int64_t pairs = (2 * last_cache + 2 * kWindow - 1) / (2 * kWindow);
  return std::clamp<int64_t>(pairs, 2, 16) * 2 * kWindow;
}

/// CPU time so far, of everybody and of this process.
struct CpuUse {
  std::optional<CpuTicks> all;
  double own_ticks = 0.0;
};

CpuUse cpu_use() {
  CpuUse use;
  std::ifstream in("/proc/stat");
  std::string line;
  if (std::getline(in, line)) use.all = parse_cpu_ticks(line);
  rusage own = {};
  ::getrusage(RUSAGE_SELF, &own);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  use.own_ticks = (seconds(own.ru_utime) + seconds(own.ru_stime)) *
                  static_cast<double>(std::max(1L, ::sysconf(_SC_CLK_TCK)));
  return use;
}

/// What other processes had of all CPU time in between.
double foreign_share(const CpuUse& before, const CpuUse& after) {
  if (!before.all || !after.all) return 0.0;
  const auto busy = static_cast<double>(after.all->busy - before.all->busy);
  const double all = busy + static_cast<double>(after.all->idle - before.all->idle);
  if (all <= 0.0) return 0.0;
  return std::clamp((busy - (after.own_ticks - before.own_ticks)) / all, 0.0, 1.0);
}

}  // namespace

std::optional<CpuTicks> parse_cpu_ticks(std::string_view proc_stat) {
  std::istringstream line{std::string(proc_stat.substr(0, proc_stat.find('\n')))};
  std::string name;
  if (!(line >> name) || name != "cpu") return std::nullopt;
  // user nice system idle iowait irq softirq steal; guests are counted under user already.
  CpuTicks ticks;
  int64_t count = 0;
  for (int i = 0; i < 8 && line >> count; ++i)
    (i == 3 || i == 4 ? ticks.idle : ticks.busy) += count;
  if (ticks.busy + ticks.idle <= 0) return std::nullopt;
  return ticks;
}

std::string warning_of(const Ceilings& ceilings) {
  constexpr double kMuch{0.1};
  if (ceilings.foreign_share <= kMuch) return {};
  return fmt::format(
      "other programs took {:.0f} % of the CPU time while the ceilings were measured: they are too "
      "low, and times predicted from them too long",
      100.0 * ceilings.foreign_share);
}

Ceilings measure_ceilings(double budget_seconds) {
  const CpuUse before = cpu_use();
  Ceilings c;
  c.threads = thread_count();

  const FmaKernel kernel = fma_kernel();
  c.fma_kernel = kernel.name;
  const int64_t parts = int64_t{8} * c.threads;
  const double flops = 2.0 * kernel.lanes * kChains * static_cast<double>(kFmaRounds * parts);
  c.fma_gflops = 1e-9 * best_rate(0.4 * budget_seconds, flops, [&](int) {
                   parallel_parts(parts, parts, [&](int64_t, int64_t, int) {
                     const float sum = kernel.run(kFmaRounds);
                     if (sum < 0.0f) g_sink = sum;  // never: the sums tend to 1
                   });
                 });

  const int64_t buffer = stream_bytes();
  const MemoryBlock block(buffer);
  std::byte* const data = block.data();
  const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(data + offset); };
  over_parts(buffer, [&](int64_t offset, int64_t bytes) {
    std::fill_n(floats(offset), bytes / 4, 1.0f);  // pages nobody wrote are all the same zero page
  });
  const auto window = [](int k, int64_t whole) { return k * kWindow % whole; };
  const auto bytes = static_cast<double>(kWindow);
  c.read_gbs = 1e-9 * best_rate(0.2 * budget_seconds, bytes, [&](int k) {
                 over_parts(kWindow, [&](int64_t offset, int64_t size) {
                   const auto* x =
                       reinterpret_cast<const uint32_t*>(data + window(k, buffer) + offset);
                   if (read_all(x, size / 4) == 1) g_sink = 1.0f;
                 });
               });
  c.copy_gbs =
      1e-9 * best_rate(0.2 * budget_seconds, 2.0 * bytes, [&](int k) {
        std::byte* const from = data + window(k, buffer / 2);
        over_parts(kWindow, [&](int64_t offset, int64_t size) {
          std::memcpy(from + buffer / 2 + offset, from + offset, static_cast<size_t>(size));
        });
      });
  c.update_gbs = 1e-9 * best_rate(0.2 * budget_seconds, 2.0 * bytes, [&](int k) {
                   over_parts(kWindow, [&](int64_t offset, int64_t size) {
                     update_all(floats(window(k, buffer) + offset), size / 4);
                   });
                 });
  c.foreign_share = foreign_share(before, cpu_use());
  return c;
}

Ceilings measure_ceilings(double budget_seconds, Device device, [[maybe_unused]] DType dtype) {
  if (device != Device::cuda) return measure_ceilings(budget_seconds);
#ifdef TL_CUDA
  return measure_ceilings_cuda(dtype);
#else
  cuda::expect_device();
  return {};
#endif
}

double floor_seconds(const Cost& cost, const Ceilings& ceilings) {
  return std::max(1e-9 * static_cast<double>(cost.flops) / ceilings.fma_gflops,
                  1e-9 * static_cast<double>(cost.bytes()) / ceilings.read_gbs);
}

}  // namespace tightloop
