// Single operations on cuda in the shapes that peers publish, in bf16:
//   ops_cuda_bench [--samples 20] [--only rmsnorm|attention|cross-entropy|polar] [--json]
// RMSNorm with weight, forward and backward; causal attention, its backward by our kernel and by
// cuDNN's; linear + softcapped cross-entropy, forward and
// backward in one; Polar Express on a stack. Inputs are random normals. The launches of a sample
// are one graph, over copies of the operands that together exceed the last cache several times;
// medians of the samples. The floor counts what must cross memory, the products' 6 T d V and, for
// Polar Express, all products computed whole. Beside Polar Express stands its cuBLAS form (--arch
// generic: cuBLASLt computes the products whole and adds through beta; of each, the fastest of its
// algorithms); samples of the two alternate.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/rng.h"
#include "tightloop/engine/ceilings.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/attention/attention_sm90.h"
#include "tightloop/ops/common/gemm_choices.h"
#include "tightloop/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "tightloop/ops/polar_express/polar_express.h"
#include "tightloop/ops/rmsnorm/rmsnorm.h"

namespace tightloop {
namespace {

/// Device memory of random normals times `scale`, of bf16 or f32; f32 statistics and sums start at
/// 0.
class Buffers {
 public:
  TensorView tensor(DType dtype, std::initializer_list<int64_t> shape, float scale = 1.0f) {
    Type type{dtype, shape};
    owned_.push_back(cuda::allocate(type.bytes()));
    const TensorView view{owned_.back(), type};
    if (scale != 0.0f) fill(view, scale);
    return view;
  }
  TensorView tokens(int64_t rows, int64_t vocab) {
    const TensorView view = tensor(DType::i32, {rows}, 0.0f);
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    Rng rng(7, 1);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab)));
    cuda::copy_to_device(view.data, ids.data(), view.bytes());
    return view;
  }
  ~Buffers() {
    for (std::byte* p : owned_) cuda::release(p);
  }

 private:
  void fill(const TensorView& view, float scale) {
    std::vector<float> values(static_cast<size_t>(std::min<int64_t>(view.elems(), 1 << 20)));
    fill_normal(values.data(), static_cast<int64_t>(values.size()), ++seed_, 1, 0.0f, scale);
    std::vector<bf16> half;
    for (float v : values) half.push_back(to_bf16(v));
    const void* from = view.dtype() == DType::bf16 ? static_cast<const void*>(half.data())
                                                   : static_cast<const void*>(values.data());
    const auto block = static_cast<int64_t>(values.size());
    auto* to = static_cast<std::byte*>(view.data);
    for (int64_t at = 0; at < view.elems(); at += block)
      cuda::copy_to_device(to + at * size_of(view.dtype()), from,
                           std::min(block, view.elems() - at) * size_of(view.dtype()));
  }
  std::vector<std::byte*> owned_;
  uint64_t seed_ = 0;
};

struct Settings {
  int samples = 20;
  bool json = false;
  Exec exec;
  Ceilings ceilings;
};

/// What a row of output says: one unit of work, and how much of it there is.
struct Row {
  std::string name;
  double bytes = 0.0, flops = 0.0;
  std::string_view peer;  // whose time stands beside
};

struct Quantiles {
  double median, p10, p90;
};

Quantiles quantiles_of(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const auto at = [&](double share) {
    return us[static_cast<size_t>(share * static_cast<double>(us.size() - 1))];
  };
  return {at(0.5), at(0.1), at(0.9)};
}

/// `peer`: empty where there is none.
void report(const Settings& settings,
            const Row& row,
            const std::vector<double>& ours,
            const std::vector<double>& peer) {
  const Quantiles us = quantiles_of(ours);
  const double floor =
      std::max(row.bytes / settings.ceilings.copy_gbs, row.flops / settings.ceilings.fma_gflops) /
      1e3;
  std::string beside;
  if (settings.json) {
    if (!peer.empty())
      beside =
          fmt::format(",\"peer\":\"{}\",\"peer_us\":{:.2f}", row.peer, quantiles_of(peer).median);
    fmt::print(
        "{{\"event\":\"kernel\",\"kernel\":\"{}\",\"us\":{:.2f},\"p10\":{:.2f},\"p90\":{:.2f},"
        "\"floor_us\":{:.2f}{}}}\n",
        row.name, us.median, us.p10, us.p90, floor, beside);
  } else {
    if (!peer.empty()) {
      const Quantiles of = quantiles_of(peer);
      beside = fmt::format("  {} {:.1f} us ({:.1f} to {:.1f}), ratio {:.3f}", row.peer, of.median,
                           of.p10, of.p90, of.median / us.median);
    }
    fmt::print("{:<60} {:10.1f} us ({:.1f} to {:.1f})  floor {:8.1f}  {:5.1f} %{}\n", row.name,
               us.median, us.p10, us.p90, floor, 100.0 * floor / us.median, beside);
  }
  std::fflush(stdout);
}

using Calls = std::vector<std::function<void()>>;

/// One graph of a call on each copy, and one of the same calls of a peer, if there is one.
void time_calls(const Settings& settings,
                const Row& row,
                const Calls& calls,
                const Calls& of_peer = {}) {
  struct Arm {
    const Calls& calls;
    cuda::Graph graph;
    std::vector<double> us;
  };
  Arm ours{calls, {}, {}}, peer{of_peer, {}, {}};
  std::vector<Arm*> arms{&ours};
  if (!of_peer.empty()) arms.push_back(&peer);
  for (Arm* arm : arms) {
    const auto run = [&] {
      for (const auto& call : arm->calls) call();
    };
    run();
    cuda::synchronize();
    arm->graph.capture(run);
  }
  cuda::Event start, end;
  for (int i = -2; i < settings.samples; ++i) {
    for (Arm* arm : arms) {
      start.record();
      arm->graph.launch();
      end.record();
      end.wait();
      if (i >= 0)
        arm->us.push_back(cuda::Event::seconds(start, end) * 1e6 /
                          static_cast<double>(arm->calls.size()));
    }
    std::reverse(arms.begin(), arms.end());
  }
  report(settings, row, ours.us, peer.us);
}

void rmsnorm_rows(const Settings& settings, int64_t rows, int64_t cols) {
  Buffers buffers;
  const double one = 2.0 * static_cast<double>(rows * cols);
  const int copies = std::clamp(static_cast<int>(1e9 / (2 * one)), 2, 16);
  std::vector<std::function<void()>> forward, backward;
  for (int i = 0; i < copies; ++i) {
    const TensorView x = buffers.tensor(DType::bf16, {rows, cols});
    const TensorView dy = buffers.tensor(DType::bf16, {rows, cols});
    const TensorView y = buffers.tensor(DType::bf16, {rows, cols}, 0.0f);
    const TensorView weight = buffers.tensor(DType::bf16, {cols});
    const TensorView rstd = buffers.tensor(DType::f32, {rows}, 0.0f);
    const TensorView dweight = buffers.tensor(DType::f32, {cols}, 0.0f);
    forward.push_back([=, &settings] {
      rmsnorm_fwd(settings.exec, {.x = x, .weight = weight, .y = y, .rstd = rstd, .eps = 1e-6});
    });
    backward.push_back([=, &settings] {
      rmsnorm_bwd(
          settings.exec,
          {.dy = dy, .saved = x, .rstd = rstd, .weight = weight, .dx = y, .dweight = dweight});
    });
  }
  const std::string shape = fmt::format("{} x {}", rows, cols);
  time_calls(settings, {.name = "rmsnorm with weight " + shape, .bytes = 2 * one}, forward);
  time_calls(settings, {.name = "rmsnorm with weight, backward " + shape, .bytes = 3 * one},
             backward);
}

void cross_entropy_rows(const Settings& settings, int64_t rows, int64_t width, int64_t vocab) {
  Buffers buffers;
  const TensorView x = buffers.tensor(DType::bf16, {rows, width});
  const TensorView w = buffers.tensor(DType::bf16, {vocab, width}, 0.1f);
  const LinearCrossEntropyGrad args{
      .x = x,
      .w = w,
      .targets = buffers.tokens(rows, vocab),
      .dloss = buffers.tensor(DType::f32, {rows}, 1e-4f),
      .weights = {},
      .loss = buffers.tensor(DType::f32, {rows}, 0.0f),
      .lse = buffers.tensor(DType::f32, {rows}, 0.0f),
      .dx = buffers.tensor(DType::bf16, {rows, width}, 0.0f),
      .dw = buffers.tensor(DType::f32, {vocab, width}, 0.0f),
      .vocab = vocab,
      .ignore_index = -1,
      .cap = 15.0,
      .chunk_rows = linear_cross_entropy_chunk_rows(
          rows, vocab, 2, int64_t{1} << 30, {width, cuda::device_info().multiprocessors / 2}),
      .accumulate = true};
  const double flops =
      6.0 * static_cast<double>(rows) * static_cast<double>(width) * static_cast<double>(vocab);
  time_calls(settings,
             {.name = fmt::format("linear + softcap cross-entropy, grad, {} x {}, V {} ({} rows)",
                                  rows, width, vocab, args.chunk_rows),
              .flops = flops},
             {[&] { linear_cross_entropy_grad(settings.exec, args); }});
}

void polar_rows(const Settings& settings, int64_t count, int64_t rows, int64_t cols) {
  Buffers buffers;
  std::vector<ConstTensorView> u;
  std::vector<TensorView> x;
  for (int64_t i = 0; i < count; ++i) {
    u.emplace_back(buffers.tensor(DType::f32, {rows, cols}));
    x.push_back(buffers.tensor(DType::f32, {rows, cols}, 0.0f));
  }
  const PolarExpress args{.u = u, .x = x, .options = {.dtype = DType::bf16}};
  const double m = static_cast<double>(std::min(rows, cols));
  const double n = static_cast<double>(std::max(rows, cols));
  time_calls(settings,
             {.name = fmt::format("Polar Express, 5 steps, {} x {} x {}", count, rows, cols),
              .flops = 5.0 * static_cast<double>(count) * (4 * m * m * n + 2 * m * m * m),
              .peer = "cuBLAS form"},
             {[&] { polar_express(settings.exec, args); }}, {[&] {
               cuda::set_generic_arch(true);
               polar_express(settings.exec, args);
               cuda::set_generic_arch(false);
             }});
}

void attention_rows(const Settings& settings, const Shape& shape) {
  Buffers buffers;
  const auto tensor = [&](float scale) {
    return buffers.tensor(DType::bf16, {shape[0], shape[1], shape[2], shape[3]}, scale);
  };
  const int64_t window = shape[1];
  const double scale = 1.0 / std::sqrt(static_cast<double>(shape[3]));
  const TensorView q = tensor(1.0f), k = tensor(1.0f), v = tensor(1.0f), o = tensor(0.0f);
  const TensorView lse = buffers.tensor(DType::f32, {shape[0], shape[2], shape[1]}, 0.0f);
  const AttentionFwd fwd{q, k, v, o, lse, window, scale};
  const AttentionBwd bwd{tensor(1.0f), q,      k,    v, o, lse, tensor(0.0f), tensor(0.0f),
                         tensor(0.0f), window, scale};
  const std::string name = fmt::format("{} x {} x {} x {}", shape[0], shape[1], shape[2], shape[3]);
  const double product = 2.0 * static_cast<double>(shape[0] * shape[2] * shape[3]) *
                         static_cast<double>(attention_visible_pairs(shape[1], window));
  time_calls(settings, {.name = "causal attention " + name, .flops = 2 * product},
             {[&] { attention_fwd(settings.exec, fwd); }});
  const auto backward_by = [=, &settings](bool own) {
    const bool before = set_sm90_attention(own);
    attention_bwd(settings.exec, bwd);
    set_sm90_attention(before);
  };
  time_calls(settings,
             {.name = "causal attention, backward " + name, .flops = 5 * product, .peer = "cuDNN"},
             {[=] { backward_by(true); }}, {[=] { backward_by(false); }});
}

constexpr std::string_view kParts[] = {"rmsnorm", "attention", "cross-entropy", "polar"};

int main_or_throw(int argc, char** argv) {
  Settings settings;
  std::string_view only;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--json") {
      settings.json = true;
    } else if (arg == "--samples" && i + 1 < argc) {
      settings.samples = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--only" && i + 1 < argc && std::ranges::count(kParts, argv[i + 1]) == 1) {
      only = argv[++i];
    } else {
      fmt::print(stderr,
                 "usage: ops_cuda_bench [--samples 20] "
                 "[--only rmsnorm|attention|cross-entropy|polar] [--json]\n");
      return 2;
    }
  }
  cuda::expect_device();
  constexpr int64_t kScratchBytes = int64_t{3} << 30;
  std::byte* const scratch = cuda::allocate(kScratchBytes);
  settings.exec = {.device = Device::cuda,
                   .scratch = {scratch, static_cast<size_t>(kScratchBytes)},
                   .stream = cuda::stream()};
  time_gemm_choices();
  settings.ceilings = measure_ceilings(0.4, Device::cuda, DType::bf16);
  if (!settings.json)
    fmt::print("{}: copy {:.0f} GB/s, product {:.0f} TFLOP/s\n", cuda::device_info().name,
               settings.ceilings.copy_gbs, settings.ceilings.fma_gflops / 1e3);
  const auto wanted = [&](std::string_view name) { return only.empty() || only == name; };
  if (wanted("rmsnorm")) {
    for (int64_t cols : {768, 1536, 4096}) rmsnorm_rows(settings, 32768, cols);
  }
  if (wanted("attention")) {
    attention_rows(settings, {32, 2048, 6, 128});
    attention_rows(settings, {16, 2048, 10, 128});
  }
  if (wanted("cross-entropy")) {
    cross_entropy_rows(settings, 32768, 768, 32768);
    cross_entropy_rows(settings, 32768, 768, 50304);
  }
  if (wanted("polar")) {
    polar_rows(settings, 24, 768, 3072);
    polar_rows(settings, 24, 3072, 768);
    polar_rows(settings, 48, 768, 768);
    polar_rows(settings, 12, 1280, 5120);
  }
  cuda::release(scratch);
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
