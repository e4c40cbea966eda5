// Attention, forward and backward, on this CPU: GFLOP/s over the visible pairs (forward 4 D,
// backward 10 D a pair), and the share of the fused multiply-add rate that a loop in registers
// reaches in the same process. Usage:
// attention_bench [threads [case]]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <vector>

#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/common/simd.h"

namespace tightloop {
namespace {

/// Independent running sums: 12 vectors of 8, or of 16.
TL_CLONES void fma_loop_96(float* sums, int64_t steps) {
  float lane[96];
  for (int64_t i = 0; i < 96; ++i) lane[i] = sums[i];
  for (int64_t s = 0; s < steps; ++s) {
    for (int64_t i = 0; i < 96; ++i) lane[i] = __builtin_fmaf(lane[i], 0.999f, 0.001f);
  }
  for (int64_t i = 0; i < 96; ++i) sums[i] = lane[i];
}
TL_CLONES void fma_loop_192(float* sums, int64_t steps) {
  float lane[192];
  for (int64_t i = 0; i < 192; ++i) lane[i] = sums[i];
  for (int64_t s = 0; s < steps; ++s) {
    for (int64_t i = 0; i < 192; ++i) lane[i] = __builtin_fmaf(lane[i], 0.999f, 0.001f);
  }
  for (int64_t i = 0; i < 192; ++i) sums[i] = lane[i];
}

/// Seconds of this process, all threads together when there is one: other work on the machine does
/// not count. With several threads, seconds on the wall.
double now_seconds() {
  timespec t{};
  clock_gettime(thread_count() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <typename Fn>
double best_seconds(Fn&& fn) {
  double best = HUGE_VAL, spent = 0.0;
  for (int i = 0; i < 200 && spent < 1.0; ++i) {
    const double start = now_seconds();
    fn();
    const double s = now_seconds() - start;
    best = std::min(best, s);
    spent += s;
  }
  return best;
}

template <typename Loop>
double gflops(Loop&& loop, int64_t lanes) {
  const int64_t steps = 1'000'000;
  const double s = best_seconds([&] {
    parallel_parts(thread_count(), thread_count(), [&](int64_t, int64_t, int) {
      float sums[192] = {};
      loop(sums, steps);
      if (sums[0] == 12345.0f) std::puts("");
    });
  });
  return 1e-9 * static_cast<double>(thread_count() * steps * lanes * 2) / s;
}

double peak_gflops() {
  return std::max(gflops(fma_loop_96, 96), gflops(fma_loop_192, 192));
}

struct Buffer {
  std::vector<float> data;
  Type type;
  Buffer(const Shape& shape, uint64_t seed)
      : data(static_cast<size_t>(shape.elems())), type{DType::f32, shape} {
    fill_normal(data.data(), shape.elems(), seed, 0, 0.0f, 1.0f);
  }
  TensorView view() { return {data.data(), type}; }
};

void bench(int64_t batch,
           int64_t tokens,
           int64_t heads,
           int64_t kv,
           int64_t dim,
           int64_t window,
           double peak) {
  const Shape qs{batch, tokens, heads, dim}, ks{batch, tokens, kv, dim}, ls{batch, heads, tokens};
  Buffer q(qs, 1), k(ks, 2), v(ks, 3), go(qs, 4), o(qs, 5), lse(ls, 6), dq(qs, 7), dk(ks, 8),
      dv(ks, 9);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  const Attrs attrs{{"window", window}, {"softmax_scale", scale}};
  OpTypes f, g;
  f.inputs = {q.type, k.type, v.type};
  g.inputs = {go.type, q.type, k.type, v.type, o.type, lse.type};
  std::vector<std::byte> scratch(
      static_cast<size_t>(64 + std::max(op_entry("attention").scratch(f, attrs),
                                        op_entry("attention_bwd").scratch(g, attrs))));
  void* start = scratch.data();
  size_t space = scratch.size();
  std::align(64, 1, start, space);
  const Exec exec{Device::cpu, {static_cast<std::byte*>(start), space}};
  const double fwd = best_seconds([&] {
    attention_fwd(exec, {q.view(), k.view(), v.view(), o.view(), lse.view(), window, scale});
  });
  const double bwd = best_seconds([&] {
    attention_bwd(exec, {go.view(), q.view(), k.view(), v.view(), o.view(), lse.view(), dq.view(),
                         dk.view(), dv.view(), window, scale});
  });
  const double pairs =
      static_cast<double>(batch * heads * attention_visible_pairs(tokens, window)) *
      static_cast<double>(dim) * 1e-9;
  std::printf(
      "B %2ld T %5ld H %ld/%ld D %3ld window %5ld | fwd %8.3f ms %6.1f GFLOP/s %4.0f%% | bwd %8.3f "
      "ms "
      "%6.1f GFLOP/s %4.0f%% | scratch %.1f MB\n",
      batch, tokens, heads, kv, dim, window, fwd * 1e3, 4 * pairs / fwd, 400 * pairs / fwd / peak,
      bwd * 1e3, 10 * pairs / bwd, 1000 * pairs / bwd / peak,
      static_cast<double>(scratch.size()) * 1e-6);
}

}  // namespace
}  // namespace tightloop

int main(int argc, char** argv) {
  using namespace tightloop;
  if (argc > 1) set_thread_count(std::atoi(argv[1]));
  const int only = argc > 2 ? std::atoi(argv[2]) : -1;
  const double peak = peak_gflops();
  std::printf("%d threads, %.1f GFLOP/s in registers\n", thread_count(), peak);
  constexpr int64_t kFull = 1 << 30;
  const int64_t cases[][6] = {
      {16, 128, 4, 4, 32, kFull},  {32, 128, 4, 4, 32, 64},      {1, 1024, 6, 6, 128, kFull},
      {1, 1024, 6, 6, 128, 256},   {1, 1024, 12, 12, 64, kFull}, {1, 1024, 12, 4, 64, 256},
      {1, 2048, 1, 1, 128, kFull}, {4, 2048, 8, 8, 64, 1024},
  };
  int index = 0;
  for (const auto& [batch, tokens, heads, kv, dim, window] : cases) {
    if (only < 0 || only == index) bench(batch, tokens, heads, kv, dim, window, peak);
    ++index;
  }
}
