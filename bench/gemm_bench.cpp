// The CPU GEMM against OpenBLAS and against the measured peak of this machine.
//   gemm_bench [--threads 1,2] [--filter text] [--samples 9] [--json]
// Arms are interleaved (ours, peer, peer, ours), operands rotate through more memory than the last
// cache holds, data is random normal. One line per shape and form: medians in GFLOP/s.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <sys/mman.h>
#include <vector>

#include <fmt/format.h>

#ifdef TL_HAVE_CBLAS
#include <cblas-openblas.h>
#endif

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/ops/common/gemm_kernels.h"

namespace tightloop {
namespace {

/// Wall time; with one thread its processor time, which other processes disturb less.
double now_s() {
  timespec t{};
  clock_gettime(thread_count() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v.size() % 2 ? v[v.size() / 2] : 0.5 * (v[v.size() / 2 - 1] + v[v.size() / 2]);
}

/// GFLOP/s of the micro-kernel on one tile that stays in L1: the ceiling of any GEMM built on it,
/// and within a few percent of the multiply-add peak of the core.
double peak_gflops(int threads) {
  const gemm_detail::Kernels& k = gemm_detail::native_kernels();
  const int64_t depth = 64;
  double best = 0;
  for (int repeat = 0; repeat < 15; ++repeat) {
    constexpr int kCalls{4000};
    const double t0 = now_s();
    parallel_parts(threads, threads, [&](int64_t, int64_t, int) {
      std::vector<float> a(static_cast<size_t>(depth * k.mr), 0.5f);
      std::vector<float> b(static_cast<size_t>(depth * k.nr), 0.25f);
      std::vector<float> c(static_cast<size_t>(k.mr * k.nr));
      for (int i = 0; i < kCalls; ++i)
        k.micro[k.mr](depth * 1, a.data(), b.data(), c.data(), k.nr, false);
    });
    const double s = now_s() - t0;
    best =
        std::max(best, 2.0 * threads * kCalls * static_cast<double>(depth * k.mr * k.nr) / s / 1e9);
  }
  return best;
}

struct Case {
  GemmForm form;
  int64_t M, N, K;
  DType b_dtype = DType::f32;
  bool symmetric = false;  // counted as the full product
};

const char* name_of(GemmForm form) {
  return form == GemmForm::nt ? "nt" : form == GemmForm::nn ? "nn" : "tn";
}

/// Memory as the product gets it: huge pages where the system gives them.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t elems) : elems_(elems) {
    void* p = mmap(nullptr, elems * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    TL_CHECK(p != MAP_FAILED);
    madvise(p, elems * sizeof(T), MADV_HUGEPAGE);
    data_ = static_cast<T*>(p);
  }
  ~Buffer() { munmap(data_, elems_ * sizeof(T)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  size_t size() const { return elems_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t elems_;
};

/// Storage for several copies of a matrix, filled once from a pool of normal numbers.
struct Pool {
  Buffer<float> f32;
  Buffer<bf16> half;
  explicit Pool(size_t elems) : f32(elems), half(elems) {
    Rng rng(1, 2);
    for (size_t i = 0; i < std::min<size_t>(elems, 1 << 20); ++i) f32[i] = rng.normal();
    for (size_t i = 1 << 20; i < elems; ++i) f32[i] = f32[i - ((1 << 20) - 1)];
    for (size_t i = 0; i < elems; ++i) half[i] = to_bf16(f32[i]);
  }
};

struct Result {
  double ours = 0, ours_best = 0, peer = 0, peer_best = 0;
};

Result run_case(const Case& s, Pool& pool, Buffer<float>& c, int samples) {
  const int64_t a_elems = s.M * s.K, b_elems = s.N * s.K;
  const int64_t copies =
      std::max<int64_t>(1, static_cast<int64_t>(pool.f32.size()) / (a_elems + b_elems));
  Gemm g{.form = s.form, .M = s.M, .N = s.N, .K = s.K};
  g.a.ld = s.form == GemmForm::tn ? s.M : s.K;
  g.b.ld = s.form == GemmForm::nt ? s.K : s.N;
  g.b.dtype = s.b_dtype;
  g.c.ld = s.N;
  g.symmetric = s.symmetric;
  g.c.data = c.data();
  Buffer<std::byte> scratch(gemm_scratch_bytes(g));
  int64_t turn = 0;
  const auto ours = [&] {
    const int64_t at = (turn++ % copies) * (a_elems + b_elems);
    g.a.data = pool.f32.data() + at;
    g.b.data = s.symmetric ? g.a.data
               : s.b_dtype == DType::bf16
                   ? static_cast<const void*>(pool.half.data() + at + a_elems)
                   : static_cast<const void*>(pool.f32.data() + at + a_elems);
    gemm(g, {scratch.data(), scratch.size()});
  };
  const auto peer = [&] {
#ifdef TL_HAVE_CBLAS
    const int64_t at = (turn++ % copies) * (a_elems + b_elems);
    cblas_sgemm(CblasRowMajor, s.form == GemmForm::tn ? CblasTrans : CblasNoTrans,
                s.form == GemmForm::nt ? CblasTrans : CblasNoTrans, static_cast<int>(s.M),
                static_cast<int>(s.N), static_cast<int>(s.K), 1.0f, pool.f32.data() + at,
                static_cast<int>(g.a.ld), pool.f32.data() + at + a_elems, static_cast<int>(g.b.ld),
                0.0f, c.data(), static_cast<int>(s.N));
#endif
  };
  const double flops =
      2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
  // Enough calls a sample to last 4 ms at 100 GFLOP/s.
  const int calls = std::max(1, static_cast<int>(4e-3 * 100e9 / flops));
  std::vector<double> t[2];
  const auto time = [&](int arm) {
    const double t0 = now_s();
    for (int i = 0; i < calls; ++i) arm == 0 ? ours() : peer();
    t[arm].push_back(flops * calls / (now_s() - t0) / 1e9);
  };
  ours();
  peer();
#ifdef TL_HAVE_CBLAS
  const bool with_peer = s.b_dtype == DType::f32;
#else
  const bool with_peer = false;
#endif
  for (int i = 0; i < samples; ++i) {
    for (int arm : {0, 1, 1, 0})
      if (arm == 0 || with_peer) time(arm);
  }
  Result r;
  r.ours = median(t[0]);
  r.ours_best = *std::max_element(t[0].begin(), t[0].end());
  if (with_peer) {
    r.peer = median(t[1]);
    r.peer_best = *std::max_element(t[1].begin(), t[1].end());
  }
  return r;
}

std::vector<Case> cases(const std::string& set) {
  std::vector<Case> out;
  const auto add = [&](int64_t M, int64_t N, int64_t K) {
    for (GemmForm form : {GemmForm::nt, GemmForm::nn, GemmForm::tn}) {
      // M tokens, W (N,K): nt y (M,N), nn dx (M,K), tn dW (N,K).
      if (form == GemmForm::nt) out.push_back({form, M, N, K});
      if (form == GemmForm::nn) out.push_back({form, M, K, N});
      if (form == GemmForm::tn) out.push_back({form, N, K, M});
    }
  };
  if (set == "table" || set == "all") {
    for (int64_t M : {512, 1024, 4096}) {
      const int64_t nk[][2] = {{256, 256},  {1024, 256}, {256, 1024},  {512, 512},   {768, 768},
                               {3072, 768}, {768, 3072}, {1024, 1024}, {3072, 1024}, {1024, 3072}};
      for (const auto& d : nk) add(M, d[0], d[1]);
    }
    const int64_t head[][2] = {{512, 256}, {512, 768}, {2048, 512}, {1024, 1024}};
    for (const auto& d : head) add(d[0], 32768, d[1]);
  }
  if (set == "quick") {
    add(512, 256, 256);
    add(1024, 768, 768);
    add(1024, 3072, 768);
    add(1024, 768, 3072);
    add(1024, 8192, 768);
    add(2048, 1024, 1024);
  }
  if (set == "few" || set == "all") {
    for (int64_t M : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256}) add(M, 3072, 768);
  }
  if (set == "narrow" || set == "all") {
    for (int64_t N : {4, 12, 16, 32, 64, 128}) add(4096, N, 768);
    for (int64_t K : {16, 32, 64, 128}) out.push_back({GemmForm::nt, 4096, 768, K});
  }
  if (set == "decode" || set == "all") {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (int64_t M : {1, 2, 3, 4, 8, 12, 16, 32})
        out.push_back({GemmForm::nt, M, 3072, 1024, dtype});
    }
  }
  if (set == "symmetric" || set == "all") {
    for (int64_t m : {128, 256, 512, 768}) {
      for (int64_t k : {m, 4 * m})
        for (bool half : {false, true}) out.push_back({GemmForm::nt, m, m, k, DType::f32, half});
    }
  }
  if (set == "bf16" || set == "all") {
    out.push_back({GemmForm::nt, 1024, 3072, 768, DType::bf16});
    out.push_back({GemmForm::nn, 1024, 768, 3072, DType::bf16});
  }
  return out;
}

int main_of(int argc, char** argv) {
  std::string set = "table";
  int samples = 5;
  bool json = false;
  std::vector<int> threads{1, 2};
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--json")
      json = true;
    else if (arg == "--samples" && i + 1 < argc)
      samples = std::atoi(argv[++i]);
    else if (arg == "--set" && i + 1 < argc)
      set = argv[++i];
    else if (arg == "--threads" && i + 1 < argc)
      threads = {std::atoi(argv[++i])};
    else {
      fmt::print(stderr,
                 "usage: gemm_bench [--set table|quick|few|narrow|decode|symmetric|bf16|all] "
                 "[--threads n] [--samples n] [--json]\n");
      return 2;
    }
  }
  Pool pool(size_t{96} << 18);  // 96 MiB of f32: three times the last cache here
  Buffer<float> c(size_t{64} << 20);
  for (int n : threads) {
    set_thread_count(n);
#ifdef TL_HAVE_CBLAS
    openblas_set_num_threads(n);
#endif
    const double peak = measure_ceilings(0.5).fma_gflops;
    const double micro = peak_gflops(n);
    if (!json)
      fmt::print(
          "# {} threads, kernel {}, multiply-add peak {:.1f}, micro-kernel in L1 {:.1f} GFLOP/s\n"
          "{:>4} {:>6} {:>6} {:>6} {:>5} {:>8} {:>8} {:>6} {:>8} {:>8} {:>6}\n",
          n, gemm_kernel_name(), peak, micro, "form", "M", "N", "K", "B", "ours", "best", "%peak",
          "peer", "best", "ratio");
    std::vector<double> ours, peers, ratio;
    for (const Case& s : cases(set)) {
      const Result r = run_case(s, pool, c, samples);
      ours.push_back(r.ours);
      if (r.peer > 0) {
        peers.push_back(r.peer);
        ratio.push_back(r.ours / r.peer);
      }
      if (json)
        fmt::print(
            "{{\"bench\":\"gemm\",\"threads\":{},\"form\":\"{}\",\"M\":{},\"N\":{},\"K\":{},"
            "\"b_dtype\":\"{}\",\"gflops\":{:.2f},\"best_gflops\":{:.2f},\"peer_gflops\":{:.2f},"
            "\"peer_best_gflops\":{:.2f},\"peak_gflops\":{:.1f}}}\n",
            n, name_of(s.form), s.M, s.N, s.K, tightloop::name_of(s.b_dtype), r.ours, r.ours_best,
            r.peer, r.peer_best, peak);
      else
        fmt::print(
            "{:>4} {:>6} {:>6} {:>6} {:>5} {:8.1f} {:8.1f} {:6.1f} {:8.1f} {:8.1f} {:6.2f}\n",
            name_of(s.form), s.M, s.N, s.K, tightloop::name_of(s.b_dtype), r.ours, r.ours_best,
            r.ours / peak * 100, r.peer, r.peer_best, r.peer > 0 ? r.ours / r.peer : 0);
      std::fflush(stdout);
    }
    if (json) continue;
    const auto summary = [&](const char* who, const std::vector<double>& rates) {
      if (rates.empty()) return;
      const double worst = *std::min_element(rates.begin(), rates.end());
      fmt::print("# {}: median {:.1f} GFLOP/s ({:.1f} % of peak), worst {:.1f} ({:.1f} %)\n", who,
                 median(rates), median(rates) / peak * 100, worst, worst / peak * 100);
    };
    summary("ours", ours);
    summary("peer", peers);
    if (!ratio.empty())
      fmt::print("# ours/peer: median {:.3f}, worst {:.3f}\n", median(ratio),
                 *std::min_element(ratio.begin(), ratio.end()));
  }
  return 0;
}

}  // namespace
}  // namespace tightloop

int main(int argc, char** argv) {
  return tightloop::main_of(argc, argv);
}
