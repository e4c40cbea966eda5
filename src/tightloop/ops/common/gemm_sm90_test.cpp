#include "tightloop/ops/common/gemm_sm90.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"

namespace tightloop {
namespace {

/// A stack of bf16 matrices with at least `pad` extra columns, here and on the device.
struct Stack {
  int64_t count, rows, cols, ld;
  std::vector<bf16> host;
  bf16* device;

  Stack(int64_t n, int64_t r, int64_t c, int64_t pad, uint64_t seed)
      : count(n),
        rows(r),
        cols(c),
        ld((c + pad + 7) / 8 * 8),
        host(static_cast<size_t>(n * r * ld)) {
    std::vector<float> values(host.size());
    fill_uniform(values.data(), static_cast<int64_t>(values.size()), seed, 3, -1.5f, 1.5f);
    for (size_t i = 0; i < host.size(); ++i) host[i] = to_bf16(values[i]);
    device = reinterpret_cast<bf16*>(cuda::allocate(bytes()));
    push();
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() { cuda::release(reinterpret_cast<std::byte*>(device)); }

  int64_t bytes() const { return static_cast<int64_t>(host.size() * sizeof(bf16)); }
  int64_t stride() const { return rows * ld; }
  void push() { cuda::copy_to_device(device, host.data(), bytes()); }
  void pull() { cuda::copy_to_host(host.data(), device, bytes()); }
  GemmInput in() const { return {.data = device, .dtype = DType::bf16, .ld = ld}; }
  bf16& at(int64_t n, int64_t i, int64_t j) {
    return host[static_cast<size_t>(n * stride() + i * ld + j)];
  }
  std::vector<double> matrix(int64_t n) const {
    std::vector<double> out;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j)
        out.push_back(to_float(host[static_cast<size_t>(n * stride() + i * ld + j)]));
    return out;
  }
};

struct Scenario {
  GemmForm form = GemmForm::nt;
  int64_t M = 1, N = 8, K = 8;
  GemmEpilogue epilogue = GemmEpilogue::none;
  int64_t pad = 0, count = 1;
  GemmCudaFactors factors = {};
  bool symmetric = false;  // N is M, B is A
  bool of_matrix = false;  // every matrix has a factor of its own
};

/// An element's error: a few roundings of its partial sums, each below eps * sum |a b|, through the
/// epilogue's derivative, plus the rounding of what is stored.
void check(const Scenario& s) {
  SCOPED_TRACE(fmt::format("form {} {} x {} x {} epilogue {} pad {} count {}",
                           static_cast<int>(s.form), s.M, s.N, s.K, static_cast<int>(s.epilogue),
                           s.pad, s.count));
  if (s.symmetric) {
    ASSERT_EQ(s.M, s.N);
  }
  const bool nt = s.form == GemmForm::nt;
  Stack a(s.count, s.M, s.K, s.pad, 1);
  Stack b(s.count, nt ? s.N : s.K, nt ? s.K : s.N, s.pad, s.symmetric ? 1 : 2);
  Stack c(s.count, s.M, s.N, s.pad, 3), e(s.count, s.M, s.N, s.pad, 4);
  for (bf16& x : e.host) x = to_bf16(to_float(x) > 0 ? to_float(x) * to_float(x) : 0.0f);
  if (s.symmetric) {
    for (int64_t n = 0; n < s.count; ++n)
      for (int64_t i = 0; i < s.M; ++i)
        for (int64_t j = 0; j < i; ++j) e.at(n, j, i) = e.at(n, i, j);
  }
  e.push();
  const std::vector<bf16> before = c.host;
  std::vector<float> of_matrix(static_cast<size_t>(s.count), 1.0f);
  const std::unique_ptr<std::byte, void (*)(std::byte*)> on_device{cuda::allocate(s.count * 4),
                                                                   cuda::release};
  GemmCudaFactors factors = s.factors;
  if (s.of_matrix) {
    for (size_t n = 0; n < of_matrix.size(); ++n)
      of_matrix[n] = 0.25f * static_cast<float>(n) + 0.7f;
    cuda::copy_to_device(on_device.get(), of_matrix.data(), s.count * 4);
    factors.of_matrix = reinterpret_cast<const float*>(on_device.get());
  }
  Gemm g{.form = s.form,
         .M = s.M,
         .N = s.N,
         .K = s.K,
         .a = a.in(),
         .b = s.symmetric ? a.in() : b.in(),
         .c = {.data = c.device, .dtype = DType::bf16, .ld = c.ld},
         .epilogue = s.epilogue,
         .symmetric = s.symmetric};
  if (s.epilogue == GemmEpilogue::relu2_bwd || s.epilogue == GemmEpilogue::add) g.e = e.in();
  const GemmBatch batch{.count = s.count,
                        .a_stride = a.stride(),
                        .b_stride = b.stride(),
                        .c_stride = c.stride(),
                        .e_stride = e.stride()};
  ASSERT_TRUE(gemm_sm90_takes(g, batch));
  gemm_sm90({.device = Device::cuda, .stream = cuda::stream()}, g, batch, factors);
  cuda::synchronize();
  c.pull();

  for (int64_t n = 0; n < s.count; ++n) {
    std::vector<double> of_a = a.matrix(n), of_b = b.matrix(n);
    const std::vector<double> of_c = c.matrix(n), of_e = e.matrix(n);
    std::vector<double> sums(of_c.size()), magnitude(of_c.size());
    const auto multiply = [&](std::vector<double>& to) {
      gemm_ref({.form = s.form,
                .M = s.M,
                .N = s.N,
                .K = s.K,
                .a = of_a.data(),
                .lda = s.K,
                .b = of_b.data(),
                .ldb = b.cols,
                .c = to.data(),
                .ldc = s.N});
    };
    multiply(sums);
    for (double& x : of_a) x = std::abs(x);
    for (double& x : of_b) x = std::abs(x);
    multiply(magnitude);
    for (size_t i = 0; i < sums.size(); ++i) {
      const double rounding = 0x1p-22 * (4 + std::sqrt(static_cast<double>(s.K))) * magnitude[i];
      double expected = sums[i], error = rounding;
      if (s.epilogue == GemmEpilogue::relu2) {
        const double positive = std::max(sums[i], 0.0);
        expected = positive * positive;
        error = 2 * positive * rounding + rounding * rounding;
      } else if (s.epilogue == GemmEpilogue::relu2_bwd) {
        expected *= 2 * std::sqrt(of_e[i]);
        error *= 2 * std::sqrt(of_e[i]) + 1e-6;
      } else {
        double added = s.epilogue == GemmEpilogue::add ? s.factors.added * of_e[i] : 0.0;
        if (static_cast<int64_t>(i) % (s.N + 1) == 0) added += s.factors.diagonal;
        expected = s.factors.product * expected + added;
        error = std::abs(s.factors.product) * error +
                0x1p-22 * (std::abs(added) + std::abs(s.factors.diagonal));
        expected *= of_matrix[static_cast<size_t>(n)], error *= of_matrix[static_cast<size_t>(n)];
      }
      error += 0x1.02p-8 * (std::abs(expected) + error) + 1e-30;
      ASSERT_NEAR(of_c[i], expected, error) << "matrix " << n << " element " << i;
    }
  }
  if (s.symmetric) {
    for (int64_t n = 0; n < s.count; ++n)
      for (int64_t i = 0; i < s.M; ++i)
        for (int64_t j = 0; j < i; ++j)
          ASSERT_EQ(c.at(n, i, j).bits, c.at(n, j, i).bits) << n << ": " << i << ", " << j;
    const std::vector<bf16> once = c.host;
    gemm_sm90({.device = Device::cuda, .stream = cuda::stream()}, g, batch, factors);
    cuda::synchronize();
    c.pull();
    ASSERT_EQ(std::memcmp(once.data(), c.host.data(), static_cast<size_t>(c.bytes())), 0);
  }
  for (int64_t i = 0; i < s.count * s.M; ++i)
    for (int64_t j = s.N; j < c.ld; ++j) {
      const size_t at = static_cast<size_t>(i * c.ld + j);
      ASSERT_EQ(c.host[at].bits, before[at].bits) << "between the rows at " << i << ", " << j;
    }
}

class GemmSm90 : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0 || cuda::device_info().compute_major != 9)
      GTEST_SKIP() << "no Hopper GPU";
  }
};

constexpr GemmForm kForms[] = {GemmForm::nt, GemmForm::nn};

TEST_F(GemmSm90, MatchesRefOverOddShapes) {
  const int64_t shapes[][3] = {{1, 8, 8},      {7, 24, 64},     {64, 256, 72},   {129, 264, 136},
                               {256, 256, 64}, {257, 512, 320}, {300, 520, 768}, {1000, 72, 2056}};
  for (GemmForm form : kForms)
    for (const auto& d : shapes)
      for (int64_t pad : {0, 8}) check({.form = form, .M = d[0], .N = d[1], .K = d[2], .pad = pad});
}

TEST_F(GemmSm90, MatchesRefEpilogues) {
  for (GemmForm form : kForms)
    for (GemmEpilogue epilogue : {GemmEpilogue::relu2, GemmEpilogue::relu2_bwd, GemmEpilogue::add})
      for (int64_t M : {40, 500})
        check({.form = form,
               .M = M,
               .N = 328,
               .K = 200,
               .epilogue = epilogue,
               .pad = 16,
               .factors = {.product = epilogue == GemmEpilogue::add ? -0.5f : 1.0f,
                           .added = epilogue == GemmEpilogue::add ? 3.0f : 1.0f}});
}

TEST_F(GemmSm90, MatchesRefStacksAndMoreTilesThanBlocks) {
  for (GemmForm form : kForms) {
    check({.form = form, .M = 200, .N = 264, .K = 136, .count = 7});
    check({.form = form, .M = 2000, .N = 5000, .K = 72});  // two bands of columns
    check({.form = form, .M = 300, .N = 296, .K = 64, .pad = 4, .count = 90});
  }
}

TEST_F(GemmSm90, SymmetricProductsMatchRefAndAreSymmetric) {
  // One tile, an odd and an even number of them, some cut off; stacks with a matrix left over.
  for (int64_t M : {8, 120, 128, 136, 256, 384, 520, 768})
    for (int64_t count : {1, 2, 3})
      for (GemmEpilogue epilogue : {GemmEpilogue::none, GemmEpilogue::add})
        check({.form = GemmForm::nt,
               .M = M,
               .N = M,
               .K = 72 + 8 * count,
               .epilogue = epilogue,
               .pad = 8 * (count - 1),
               .count = count,
               .factors = {.product = -0.5f, .added = 3.0f, .diagonal = 20.0f},
               .symmetric = true,
               .of_matrix = M % 16 == 8 || count == 3});
}

TEST_F(GemmSm90, SymmetricProductsOfMoreTilesThanBlocks) {
  check({.M = 200, .N = 200, .K = 136, .count = 101, .symmetric = true});
  check({.M = 2328, .N = 2328, .K = 136, .symmetric = true});
  for (int64_t K : {72, 712})  // less and more than the stages hold
    check({.M = 768,
           .N = 768,
           .K = K,
           .epilogue = GemmEpilogue::add,
           .count = K < 100 ? 9 : 2,
           .symmetric = true});
}

TEST_F(GemmSm90, SaysWhatItDoesNotTake) {
  Stack a(1, 16, 16, 0, 1), b(1, 16, 16, 0, 2), c(1, 16, 16, 0, 3);
  const Gemm fine{.form = GemmForm::nt,
                  .M = 16,
                  .N = 16,
                  .K = 16,
                  .a = a.in(),
                  .b = b.in(),
                  .c = {.data = c.device, .dtype = DType::bf16, .ld = 16}};
  EXPECT_TRUE(gemm_sm90_takes(fine, {}));
  const auto refused = [](const Gemm& g) { return !gemm_sm90_takes(g, {}); };
  Gemm g = fine;
  g.form = GemmForm::tn;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.accumulate = true;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.N = 12;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.a.ld = 12;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.b.data = b.device + 4;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.c.dtype = DType::f32;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.symmetric = true;
  EXPECT_TRUE(refused(g));  // B is not A
  g.b.data = a.device;
  EXPECT_FALSE(refused(g));
  g.epilogue = GemmEpilogue::relu2;
  EXPECT_TRUE(refused(g));
  g = fine;
  g.c.dtype = DType::f32;
  EXPECT_THROW(gemm_sm90({.device = Device::cuda, .stream = cuda::stream()}, g), Error);
}

}  // namespace
}  // namespace tightloop
