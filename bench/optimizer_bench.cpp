// The optimizer operations on the CPU.
//   optimizer_bench [--threads 1,2] [--samples 15]
// AdamW beside in-place passes without arithmetic, interleaved, over more memory than the last
// cache holds: the share of the memory rate it reaches. Then the Muon step of the matrices of a few
// widths, in GFLOP/s of the products that Polar Express needs (a symmetric product counted half).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/ops/adamw/adamw.h"
#include "tightloop/ops/common/simd.h"
#include "tightloop/ops/muon/muon.h"
#include "tightloop/ops/polar_express/polar_express.h"

namespace tightloop {
namespace {

/// Wall time; with one thread its processor time, which other processes disturb less.
double now_s() {
  timespec t{};
  clock_gettime(thread_count() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Memory {
  std::unique_ptr<void, decltype(&std::free)> start;
  Type type;

  Memory(Type t, Rng& rng)
      : start(std::aligned_alloc(4096, static_cast<size_t>(t.bytes() + 4095) / 4096 * 4096),
              &std::free),
        type(t) {
    for (int64_t i = 0; i < t.elems(); ++i)
      set_element(view(), i, t.dtype == DType::i32 ? 0.0 : 0.01 * std::abs(rng.normal()) + 1e-4);
  }
  TensorView view() const { return {start.get(), type}; }
};

struct Arm {
  std::string name;
  double work;  // bytes or FLOPs
  std::function<void()> run;
  std::vector<double> seconds = {};

  double median_rate() {
    std::sort(seconds.begin(), seconds.end());
    return work / seconds[seconds.size() / 2] / 1e9;
  }
  double best_rate() const {
    return work / *std::min_element(seconds.begin(), seconds.end()) / 1e9;
  }
};

/// Runs the arms in turn, forth and back.
void measure(std::vector<Arm>& arms, int samples) {
  for (Arm& arm : arms) arm.run();
  for (int sample = 0; sample < samples; ++sample) {
    for (size_t i = 0; i < arms.size(); ++i) {
      Arm& arm = arms[sample % 2 == 0 ? i : arms.size() - 1 - i];
      const double start = now_s();
      arm.run();
      arm.seconds.push_back(now_s() - start);
    }
  }
}

TL_CLONES void scale_range(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= 1.000001f;
}

/// Reads four streams and writes three of them, as AdamW does.
TL_CLONES void four_streams_range(const float* __restrict g,
                                  float* __restrict p,
                                  float* __restrict m,
                                  float* __restrict v,
                                  int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = 1e-6f * g[i];
    p[i] -= x, m[i] += x, v[i] += x;
  }
}

void bench_adamw(int samples) {
  constexpr int64_t kCount{int64_t{1} << 24};
  Rng rng(1, 0);
  const Type wide{DType::f32, {kCount}}, narrow{DType::bf16, {kCount}};
  const Memory g(wide, rng), p(wide, rng), m(wide, rng), v(wide, rng);
  const Memory p16(narrow, rng), m16(narrow, rng), v16(narrow, rng);
  float hyper[8] = {1e-3f, 0.8f, 0.96f, 1e-10f, 0.01f, 0.5f, 0.5f, 0.0f};
  const ConstTensorView hypers{hyper, {DType::f32, {8}}};
  const auto at = [](const Memory& memory) { return memory.view().as<float>(); };
  std::vector<Arm> arms;
  arms.push_back({"x *= c, 8 B", 8.0 * kCount, [&] {
                    parallel_for(kCount, 16384, [&](int64_t begin, int64_t end) {
                      scale_range(at(p) + begin, end - begin);
                    });
                  }});
  arms.push_back({"4 in, 3 out, 28 B", 28.0 * kCount, [&] {
                    parallel_for(kCount, 16384, [&](int64_t begin, int64_t end) {
                      four_streams_range(at(g) + begin, at(p) + begin, at(m) + begin, at(v) + begin,
                                         end - begin);
                    });
                  }});
  arms.push_back(
      {"adamw f32, 28 B", 28.0 * kCount, [&] {
         adamw(Exec{},
               {.g = g.view(), .hyper = hypers, .p = p.view(), .m = m.view(), .v = v.view()});
       }});
  arms.push_back(
      {"adamw bf16, 16 B", 16.0 * kCount, [&] {
         adamw(Exec{},
               {.g = g.view(), .hyper = hypers, .p = p16.view(), .m = m16.view(), .v = v16.view()});
       }});
  measure(arms, samples);
  for (Arm& arm : arms)
    std::printf("%-20s %6.1f GB/s median  %6.1f best\n", arm.name.c_str(), arm.median_rate(),
                arm.best_rate());
}

void bench_muon(const Shape& shape, int samples) {
  Rng rng(2, 0);
  const Memory g({DType::f32, shape}, rng), momentum({DType::f32, shape}, rng);
  const Memory u({DType::f32, shape}, rng), x({DType::f32, shape}, rng),
      p({DType::f32, shape}, rng);
  const Memory second({DType::f32, muon_second_moment_shape(shape)}, rng);
  float hyper[8] = {0.02f, 0.95f, 0.9f, 0.1f};
  const ConstTensorView hypers{hyper, {DType::f32, {8}}};
  const OpTypes types{.inputs = {u.type}, .updates = {}, .outputs = {x.type}};
  const Attrs attrs{{"steps", int64_t{5}},
                    {"norm_factor", 1.01},
                    {"row_equilibrate", true},
                    {"renormalize", true},
                    {"dtype", static_cast<int64_t>(DType::f32)}};
  const int64_t bytes = op_entry("polar_express").scratch(types, attrs) + 64 * shape.elems();
  const Memory scratch({DType::i32, {bytes / 4}}, rng);
  const Exec exec{Device::cpu,
                  {static_cast<std::byte*>(scratch.view().data), static_cast<size_t>(bytes)}};
  const auto side = static_cast<double>(std::min(shape[0], shape[1]));
  const auto elems = static_cast<double>(shape.elems());
  const ConstTensorView of_g = g.view(), of_u = u.view(), of_x = x.view();
  const TensorView to_momentum = momentum.view(), to_u = u.view(), to_x = x.view();
  const TensorView to_p = p.view(), to_second = second.view();
  std::vector<Arm> arms;
  arms.push_back({"polar", 5 * (3 * side * elems + side * side * side), [&] {
                    polar_express(exec, {.u = {&of_u, 1}, .x = {&to_x, 1}, .options = {}});
                  }});
  arms.push_back(
      {"momentum", 16 * elems, [&] {
         muon_momentum(
             exec,
             {.g = {&of_g, 1}, .hyper = hypers, .momentum = {&to_momentum, 1}, .u = {&to_u, 1}});
       }});
  arms.push_back(
      {"update", 16 * elems, [&] {
         muon_update(
             exec,
             {.x = {&of_x, 1}, .hyper = hypers, .p = {&to_p, 1}, .second_moment = {&to_second, 1}});
       }});
  measure(arms, samples);
  std::printf(
      "muon %-12s polar %6.1f GFLOP/s median %6.1f best   momentum %5.1f GB/s   update %5.1f "
      "GB/s\n",
      to_string(shape).c_str(), arms[0].median_rate(), arms[0].best_rate(), arms[1].median_rate(),
      arms[2].median_rate());
}

}  // namespace
}  // namespace tightloop

int main(int argc, char** argv) {
  using namespace tightloop;
  std::vector<int> threads{thread_count()};
  int samples = 15;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--samples") == 0) samples = std::max(1, std::atoi(argv[i + 1]));
    if (std::strcmp(argv[i], "--threads") == 0) {
      threads.clear();
      for (const char* at = argv[i + 1]; at != nullptr && *at != 0;) {
        threads.push_back(std::max(1, std::atoi(at)));
        at = std::strchr(at, ',');
        if (at != nullptr) ++at;
      }
    }
  }
  for (int count : threads) {
    set_thread_count(count);
    std::printf("threads %d\n", count);
    bench_adamw(samples);
    for (const Shape& shape : {Shape{12, 12}, Shape{128, 128}, Shape{512, 128}, Shape{128, 512},
                               Shape{768, 768}, Shape{3072, 768}, Shape{768, 3072}})
      bench_muon(shape, samples);
  }
  return 0;
}
