// Our product for Hopper against cuBLASLt in the same process.
//   gemm_cuda_bench [--samples 15] [--json]
// Arms alternate (ours, theirs, theirs, ours); each sample is a run of launches that takes a few
// milliseconds, over operands of random normals larger than the last cache. With an epilogue,
// theirs is the product and a pass after it; `half` is a product of a matrix with itself, of which
// ours computes what lies on and below the diagonal. One line a shape: median microseconds and
// TFLOP/s of the whole product; with --json also the floor, the FLOPs that are needed at the rate
// of a large product measured first.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/ops/common/gemm_sm90.h"

namespace tightloop {
namespace {

struct Case {
  GemmForm form;
  int64_t M, N, K;
  GemmEpilogue epilogue = GemmEpilogue::none;
  int64_t count = 1;
  bool symmetric = false;  // B is A; theirs computes the whole product
};

const char* name_of(GemmForm form) {
  return form == GemmForm::nt ? "nt" : form == GemmForm::nn ? "nn" : "tn";
}
const char* name_of(GemmEpilogue epilogue) {
  constexpr const char* kNames[] = {"", "relu2", "relu2_bwd", "add"};
  return kNames[static_cast<int>(epilogue)];
}
std::string name_of(const Case& s) {
  return fmt::format("{}{}{}", s.symmetric ? "half" : "",
                     s.symmetric && s.epilogue != GemmEpilogue::none ? " " : "",
                     name_of(s.epilogue));
}

class Matrix {
 public:
  explicit Matrix(int64_t elems, uint64_t seed, bool positive = false) {
    std::vector<float> values(1 << 20);
    fill_normal(values.data(), static_cast<int64_t>(values.size()), seed, 1, 0.0f, 1.0f);
    std::vector<bf16> host(values.size());
    for (size_t i = 0; i < host.size(); ++i)
      host[i] = to_bf16(positive ? std::max(values[i], 0.0f) : values[i]);
    data_ = reinterpret_cast<bf16*>(cuda::allocate(elems * 2));
    const auto block = static_cast<int64_t>(host.size());
    for (int64_t at = 0; at < elems; at += block)
      cuda::copy_to_device(data_ + at, host.data(), std::min(block, elems - at) * 2);
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { cuda::release(reinterpret_cast<std::byte*>(data_)); }
  bf16* data() { return data_; }

 private:
  bf16* data_;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

template <typename Fn>
double seconds_each(int launches, Fn&& launch) {
  cuda::Event start, end;
  start.record();
  for (int i = 0; i < launches; ++i) launch();
  end.record();
  end.wait();
  return cuda::Event::seconds(start, end) / launches;
}

/// `peak`: GFLOP/s of a large product.
void run(const Case& s, int samples, bool json, double peak) {
  Matrix a(s.count * s.M * s.K, 1), b(s.count * s.N * s.K, 2), c(s.count * s.M * s.N, 3);
  Matrix e(s.epilogue == GemmEpilogue::none ? 1 : s.count * s.M * s.N, 4, true);
  Gemm g{.form = s.form,
         .M = s.M,
         .N = s.N,
         .K = s.K,
         .a = {.data = a.data(), .dtype = DType::bf16, .ld = s.K},
         .b = {.data = s.symmetric ? a.data() : b.data(),
               .dtype = DType::bf16,
               .ld = s.form == GemmForm::nt ? s.K : s.N},
         .c = {.data = c.data(), .dtype = DType::bf16, .ld = s.N},
         .epilogue = s.epilogue,
         .symmetric = s.symmetric};
  if (s.epilogue == GemmEpilogue::relu2_bwd || s.epilogue == GemmEpilogue::add)
    g.e = {.data = e.data(), .dtype = DType::bf16, .ld = s.N};
  const GemmBatch batch{.count = s.count,
                        .a_stride = s.M * s.K,
                        .b_stride = s.N * s.K,
                        .c_stride = s.M * s.N,
                        .e_stride = s.M * s.N};
  const Exec exec{.device = Device::cuda, .stream = cuda::stream()};
  const auto ours = [&] { gemm_sm90(exec, g, batch); };
  const auto theirs = [&] {
    cuda::set_generic_arch(true);  // gemm_cuda() by cuBLASLt alone
    gemm_cuda(exec, g, batch);
    cuda::set_generic_arch(false);
  };
  const double flops = 2.0 * static_cast<double>(s.count) * static_cast<double>(s.M) *
                       static_cast<double>(s.N) * static_cast<double>(s.K);
  const int launches = std::max(1, static_cast<int>(3e-3 / (flops / 6e14)));
  ours();
  theirs();
  std::vector<double> of_ours, of_theirs;
  for (int i = 0; i < samples; ++i) {
    const bool first = i % 2 == 0;
    if (first) of_ours.push_back(seconds_each(launches, ours));
    of_theirs.push_back(seconds_each(launches, theirs));
    if (!first) of_ours.push_back(seconds_each(launches, ours));
  }
  const double us = median(of_ours) * 1e6, peer = median(of_theirs) * 1e6;
  // Of a symmetric product the elements on and below the diagonal are enough.
  const auto n = static_cast<double>(s.N);
  const double floor = flops * (s.symmetric ? (n + 1) / (2 * n) : 1.0) / peak / 1e3;
  if (json) {
    const std::string shape = fmt::format("{} x {} x {} x {}", s.count, s.M, s.N, s.K);
    fmt::print(
        "{{\"event\":\"kernel\",\"kernel\":\"product {} {} {}\",\"us\":{:.2f},\"floor_us\":{:.2f},"
        "\"peer\":\"cuBLASLt\",\"peer_us\":{:.2f}}}\n",
        name_of(s.form), shape, name_of(s), us, floor, peer);
  } else {
    fmt::print(
        "{:2} {:>3} x {:>6} x {:>6} x {:>6} {:>10} {:9.1f} {:7.1f} {:11.1f} {:7.1f} {:7.3f}\n",
        name_of(s.form), s.count, s.M, s.N, s.K, name_of(s), us, flops / us / 1e6, peer,
        flops / peer / 1e6, peer / us);
  }
  std::fflush(stdout);
}

constexpr GemmForm nt = GemmForm::nt, nn = GemmForm::nn;
constexpr GemmEpilogue none = GemmEpilogue::none, relu2 = GemmEpilogue::relu2,
                       relu2_bwd = GemmEpilogue::relu2_bwd, add = GemmEpilogue::add;

const Case kCases[] = {{nt, 65536, 3072, 768},
                       {nt, 65536, 768, 3072},
                       {nt, 8192, 8192, 8192},
                       {nn, 8192, 8192, 8192},
                       {nt, 65536, 768, 768},
                       {nn, 65536, 768, 768},
                       {nn, 65536, 768, 3072},
                       {nn, 65536, 3072, 768},
                       {nt, 16384, 32768, 768},
                       {nn, 16384, 768, 32768},
                       {nt, 32768, 1280, 1280},
                       {nn, 32768, 1280, 1280},
                       {nt, 32768, 5120, 1280},
                       {nt, 32768, 1280, 5120},
                       {nn, 32768, 1280, 5120},
                       {nt, 65536, 3072, 768, relu2},
                       {nn, 65536, 3072, 768, relu2_bwd},
                       {nt, 32768, 5120, 1280, relu2},
                       {nn, 32768, 5120, 1280, relu2_bwd},
                       {nn, 65536, 768, 768, add},
                       {nt, 768, 768, 768, none, 48},
                       {nt, 768, 768, 3072, none, 24},
                       {nn, 768, 768, 768, add, 48},
                       {nn, 768, 3072, 768, none, 24},
                       {nn, 768, 3072, 768, add, 24},
                       {nt, 768, 768, 3072, none, 24, true},
                       {nt, 768, 768, 768, none, 48, true},
                       {nt, 768, 768, 768, add, 24, true},
                       {nt, 1280, 1280, 5120, none, 10, true},
                       {nt, 1280, 1280, 1280, add, 10, true},
                       {nt, 8192, 8192, 8192, none, 1, true}};

int main_or_throw(int argc, char** argv) {
  int samples = 15;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--json") {
      json = true;
    } else if (arg == "--samples" && i + 1 < argc) {
      samples = std::max(1, std::atoi(argv[++i]));
    } else {
      fmt::print(stderr, "usage: gemm_cuda_bench [--samples 15] [--json]\n");
      return 2;
    }
  }
  cuda::expect_device();
  if (!json)
    fmt::print("{}\n{:<43} {:>9} {:>7} {:>11} {:>7} {:>7}\n", cuda::device_info().name,
               "form, count x M x N x K", "us", "TFLOP/s", "cuBLASLt us", "TFLOP/s", "ratio");
  const double peak = measure_ceilings(0.4, Device::cuda, DType::bf16).fma_gflops;
  for (const Case& s : kCases) run(s, samples, json, peak);
  return 0;
}

}  // namespace
}  // namespace tightloop

int main(int argc, char** argv) {
  try {
    return tightloop::main_or_throw(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return 3;
  }
}
