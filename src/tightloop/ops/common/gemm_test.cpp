#include "tightloop/ops/common/gemm.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/ops/common/gemm_kernels.h"

namespace tightloop {
namespace {

using gemm_detail::Kernels;

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> out;
  for (const Kernels* k : {gemm_detail::avx512_kernels(), gemm_detail::avx2_kernels(),
                           gemm_detail::neon_kernels(), gemm_detail::portable_kernels()})
    if (k) out.push_back(k);
  return out;
}

/// A stored matrix with extra columns, as f32 or bf16, and its values in double.
struct Matrix {
  int64_t rows, cols, ld;
  DType dtype;
  std::vector<float> f32;
  std::vector<bf16> half;
  std::vector<double> values;  // dense (rows, cols)

  Matrix(int64_t r, int64_t c, int64_t pad, DType type, uint64_t seed)
      : rows(r), cols(c), ld(c + pad), dtype(type) {
    const size_t elems = static_cast<size_t>(r * ld + 1);
    f32.resize(elems);
    half.resize(elems);
    fill_uniform(f32.data(), static_cast<int64_t>(elems), seed, 7, -1.7f, 1.7f);
    for (size_t i = 0; i < elems; ++i) half[i] = to_bf16(f32[i]);
    refresh();
  }
  void refresh() {
    values.resize(static_cast<size_t>(rows * cols));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) values[static_cast<size_t>(i * cols + j)] = at(i, j);
  }
  double at(int64_t i, int64_t j) const {
    const size_t at = static_cast<size_t>(i * ld + j);
    return dtype == DType::bf16 ? to_float(half[at]) : f32[at];
  }
  void* data() { return dtype == DType::bf16 ? static_cast<void*>(half.data()) : f32.data(); }
  GemmInput in() { return GemmInput{.data = data(), .dtype = dtype, .ld = ld}; }
  GemmOutput out() { return GemmOutput{.data = data(), .dtype = dtype, .ld = ld}; }
};

struct Scenario {
  GemmForm form = GemmForm::nt;
  int64_t M = 1, N = 1, K = 1;
  DType a = DType::f32, b = DType::f32, c = DType::f32, e = DType::f32;
  bool accumulate = false;
  GemmEpilogue epilogue = GemmEpilogue::none;
  bool scale_a = false, scale_b = false;
  int64_t pad = 0;
};

std::string describe(const Scenario& s, const Kernels& k) {
  return fmt::format(
      "{} form {} M {} N {} K {} a {} b {} c {} acc {} epilogue {} scale {}{} pad {}", k.name,
      static_cast<int>(s.form), s.M, s.N, s.K, name_of(s.a), name_of(s.b), name_of(s.c),
      s.accumulate, static_cast<int>(s.epilogue), s.scale_a, s.scale_b, s.pad);
}

struct Problem {
  Matrix a, b, c, e;
  std::vector<float> scales;
  Gemm g;
  std::vector<double> before;  // C as it was

  explicit Problem(const Scenario& s)
      : a(s.form == GemmForm::tn ? s.K : s.M, s.form == GemmForm::tn ? s.M : s.K, s.pad, s.a, 1),
        b(s.form == GemmForm::nt ? s.N : s.K, s.form == GemmForm::nt ? s.K : s.N, s.pad, s.b, 2),
        c(s.M, s.N, s.pad, s.c, 3),
        e(s.M, s.N, s.pad, s.e, 4),
        scales(static_cast<size_t>(2 * (s.M + s.N + s.K)) + 64) {
    for (size_t i = 0; i < e.f32.size(); ++i) {  // relu2_bwd wants squares
      e.f32[i] = e.f32[i] > 0 ? e.f32[i] * e.f32[i] : 0;
      e.half[i] = to_bf16(e.f32[i]);
    }
    e.refresh();
    fill_normal(scales.data(), static_cast<int64_t>(scales.size()), 5, 5, 1.0f, 0.2f);
    g = Gemm{.form = s.form,
             .M = s.M,
             .N = s.N,
             .K = s.K,
             .a = a.in(),
             .b = b.in(),
             .c = c.out(),
             .accumulate = s.accumulate,
             .epilogue = s.epilogue};
    if (s.epilogue == GemmEpilogue::relu2_bwd || s.epilogue == GemmEpilogue::add) g.e = e.in();
    const float* next = scales.data();
    const auto scaled = [&](Matrix& m, GemmInput& in) {
      in.row_scale = next;
      in.col_scale = next + m.rows;
      next += m.rows + m.cols;
      for (int64_t i = 0; i < m.rows; ++i)
        for (int64_t j = 0; j < m.cols; ++j)
          m.values[static_cast<size_t>(i * m.cols + j)] *=
              static_cast<double>(in.row_scale[i]) * static_cast<double>(in.col_scale[j]);
    };
    if (s.scale_a) scaled(a, g.a);
    if (s.scale_b) scaled(b, g.b);
    before = c.values;
  }

  void reset_c() {
    for (int64_t i = 0; i < g.M; ++i) {
      for (int64_t j = 0; j < g.N; ++j) {
        const float v = static_cast<float>(before[static_cast<size_t>(i * g.N + j)]);
        c.f32[static_cast<size_t>(i * c.ld + j)] = v;
        c.half[static_cast<size_t>(i * c.ld + j)] = to_bf16(v);
      }
    }
  }

  void run(const Kernels& k) {
    std::vector<std::byte> scratch(gemm_detail::scratch_bytes(k, g));
    gemm_detail::gemm_with(k, g, {}, scratch);
  }

  /// An element's error is at most a few roundings of the partial sums, each below eps * sum |a b|,
  /// times the derivative of the epilogue, plus one rounding of what is stored.
  /// Large problems are checked on some of their rows.
  void expect_close(const Scenario& s, const std::string& where) {
    const double eps = 0x1p-24;
    const double stored = s.c == DType::bf16 ? 0x1p-8 : eps;
    std::vector<double> abs_a = a.values, abs_b = b.values;
    for (double& x : abs_a) x = std::abs(x);
    for (double& x : abs_b) x = std::abs(x);
    std::vector<double> expected(static_cast<size_t>(g.N)), magnitude(expected.size());
    for (int64_t i = 0; i < g.M; i += (g.M > 40 && i % 7 < 6 && i < g.M - 7) ? g.M / 20 : 1) {
      const int64_t offset = s.form == GemmForm::tn ? i : i * a.cols;
      const double* e_row = e.values.data() + i * g.N;
      expected.assign(before.begin() + i * g.N, before.begin() + (i + 1) * g.N);
      GemmRef r{.form = s.form,
                .M = 1,
                .N = g.N,
                .K = g.K,
                .a = a.values.data() + offset,
                .lda = a.cols,
                .b = b.values.data(),
                .ldb = b.cols,
                .c = expected.data(),
                .ldc = g.N,
                .accumulate = s.accumulate,
                .epilogue = s.epilogue,
                .e = e_row,
                .lde = g.N};
      gemm_ref(r);
      r.a = abs_a.data() + offset;
      r.b = abs_b.data();
      r.c = magnitude.data();
      r.accumulate = false;
      r.epilogue = GemmEpilogue::none;
      gemm_ref(r);
      for (int64_t j = 0; j < g.N; ++j) {
        const size_t at = static_cast<size_t>(j);
        double error = eps * (8 + 2 * std::sqrt(static_cast<double>(g.K))) * magnitude[at];
        if (s.epilogue == GemmEpilogue::relu2)
          error = 2 * std::sqrt(expected[at]) * error + error * error;
        if (s.epilogue == GemmEpilogue::relu2_bwd) error *= 2 * std::sqrt(e_row[j]) + eps;
        const double extra =
            std::abs(before[static_cast<size_t>(i * g.N + j)]) + std::abs(e_row[j]);
        error += stored * 1.01 * (std::abs(expected[at]) + error) + 4 * eps * extra + 1e-30;
        ASSERT_NEAR(c.at(i, j), expected[at], error) << where << " at " << i << ", " << j;
      }
    }
  }

  /// What lies between the columns must not be touched.
  std::vector<float> padding() const {
    std::vector<float> out;
    for (int64_t i = 0; i < c.rows; ++i)
      for (int64_t j = c.cols; j < c.ld; ++j) out.push_back(static_cast<float>(c.at(i, j)));
    return out;
  }
};

/// Threads for as long as it lives.
struct Threads {
  int before = thread_count();
  explicit Threads(int n) { set_thread_count(n); }
  ~Threads() { set_thread_count(before); }
};

/// On one thread, unless told otherwise: many small loops on a busy machine wait more than they
/// work, and SameBitsForAnyThreadCount covers the rest.
void check(const Scenario& s, int threads = 1) {
  const Threads guard(threads);
  Problem p(s);
  const std::vector<float> padding = p.padding();
  for (const Kernels* k : available()) {
    p.reset_c();
    p.run(*k);
    p.expect_close(s, describe(s, *k));
    EXPECT_EQ(padding, p.padding()) << describe(s, *k);
    if (testing::Test::HasFatalFailure()) return;
  }
}

constexpr GemmForm kForms[] = {GemmForm::nt, GemmForm::nn, GemmForm::tn};

TEST(Gemm, MatchesRefOverOddShapes) {
  const int64_t shapes[][3] = {{1, 1, 1},     {2, 3, 5},      {5, 17, 9},     {6, 16, 8},
                               {7, 15, 33},   {13, 31, 64},   {14, 32, 256},  {15, 33, 257},
                               {64, 48, 100}, {65, 16, 40},   {66, 100, 31},  {97, 12, 300},
                               {101, 130, 7}, {150, 70, 519}, {12, 700, 530}, {300, 5, 770}};
  for (GemmForm form : kForms) {
    for (const auto& d : shapes) {
      check({.form = form, .M = d[0], .N = d[1], .K = d[2]});
      check({.form = form, .M = d[0], .N = d[1], .K = d[2], .accumulate = true, .pad = 3});
    }
  }
}

TEST(Gemm, MatchesRefBf16) {
  for (GemmForm form : kForms) {
    for (int64_t M : {3, 20, 131}) {
      for (int mask = 1; mask < 8; ++mask) {
        const auto type = [&](int bit) { return mask & bit ? DType::bf16 : DType::f32; };
        check({.form = form, .M = M, .N = 45, .K = 70, .a = type(1), .b = type(2), .c = type(4)});
        check({.form = form,
               .M = M,
               .N = 45,
               .K = 600,
               .a = type(1),
               .b = type(2),
               .c = type(4),
               .accumulate = true,
               .pad = 5});
      }
    }
  }
}

TEST(Gemm, MatchesRefEpilogues) {
  for (GemmForm form : kForms) {
    for (GemmEpilogue epilogue :
         {GemmEpilogue::relu2, GemmEpilogue::relu2_bwd, GemmEpilogue::add}) {
      for (int64_t M : {2, 30, 130}) {
        for (int64_t K : {0, 50, 530}) {
          for (DType c : {DType::f32, DType::bf16})
            check({.form = form,
                   .M = M,
                   .N = 53,
                   .K = K,
                   .c = c,
                   .e = c,
                   .epilogue = epilogue,
                   .pad = 2});
        }
      }
    }
  }
}

TEST(Gemm, MatchesRefScaledOperands) {
  for (GemmForm form : kForms) {
    for (int64_t M : {4, 33, 130}) {
      check({.form = form, .M = M, .N = 37, .K = 300, .scale_a = true, .pad = 1});
      check({.form = form, .M = M, .N = 37, .K = 300, .b = DType::bf16, .scale_b = true});
      check({.form = form,
             .M = M,
             .N = 37,
             .K = 41,
             .a = DType::bf16,
             .scale_a = true,
             .scale_b = true});
    }
  }
}

TEST(Gemm, MatchesRefSeveralBlocksOfEverything) {
  check({.form = GemmForm::nt, .M = 200, .N = 3200, .K = 1000}, 2);
  check({.form = GemmForm::tn, .M = 60, .N = 20, .K = 36000}, 2);
  check({.form = GemmForm::tn, .M = 70, .N = 170, .K = 19000, .c = DType::bf16}, 2);
}

TEST(Gemm, RowKernelsMatchRef) {
  for (int64_t M = 1; M <= 9; ++M) {
    for (DType b : {DType::f32, DType::bf16}) {
      for (int64_t K : {1, 31, 32, 100, 768})
        check({.form = GemmForm::nt, .M = M, .N = 67, .K = K, .b = b, .pad = K % 2});
    }
  }
}

TEST(Gemm, EmptyReductionClearsOrKeepsC) {
  for (GemmForm form : kForms) {
    for (int64_t M : {2, 20, 100}) {
      check({.form = form, .M = M, .N = 20, .K = 0});
      check({.form = form, .M = M, .N = 20, .K = 0, .c = DType::bf16, .accumulate = true});
    }
  }
  Gemm nothing{.M = 0, .N = 4, .K = 4};
  std::vector<std::byte> scratch(gemm_scratch_bytes(nothing));
  nothing.b.ld = nothing.a.ld = nothing.c.ld = 4;
  float b[16];
  nothing.b.data = b;
  EXPECT_NO_THROW(gemm(nothing, scratch));
}

std::vector<float> result_bits(const Scenario& s, const Kernels& k, int threads) {
  const Threads guard(threads);
  Problem p(s);
  p.run(k);
  return p.c.f32;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST(Gemm, SameBitsForAnyThreadCount) {
  for (GemmForm form : kForms) {
    for (const Scenario& s : {Scenario{.form = form, .M = 5, .N = 300, .K = 600},
                              Scenario{.form = form, .M = 40, .N = 333, .K = 600},
                              Scenario{.form = form, .M = 300, .N = 333, .K = 1100},
                              Scenario{.form = form, .M = 500, .N = 12, .K = 600}}) {
      for (const Kernels* k : available()) {
        const std::vector<float> one = result_bits(s, *k, 1);
        EXPECT_TRUE(same_bits(one, result_bits(s, *k, 2))) << describe(s, *k);
        EXPECT_TRUE(same_bits(one, result_bits(s, *k, 3))) << describe(s, *k);
        EXPECT_TRUE(same_bits(one, result_bits(s, *k, 7))) << describe(s, *k);
      }
    }
  }
}

TEST(Gemm, SameBitsForEveryVectorWidthWithFma) {
  const std::vector<const Kernels*> kernels = available();
  for (GemmForm form : kForms) {
    for (int64_t M : {1, 3, 7, 40, 300}) {
      for (DType b : {DType::f32, DType::bf16}) {
        const Scenario s{.form = form, .M = M, .N = 77, .K = 777, .b = b};
        for (const Kernels* k : kernels) {
          if (std::string(k->name) == "portable") continue;
          EXPECT_TRUE(same_bits(result_bits(s, *kernels[0], 2), result_bits(s, *k, 2)))
              << describe(s, *k);
        }
      }
    }
  }
}

TEST(Gemm, WorksInsideAParallelLoop) {
  const Scenario s{.form = GemmForm::nn, .M = 100, .N = 60, .K = 90};
  std::vector<Problem> problems;
  for (int i = 0; i < 8; ++i) problems.emplace_back(s);
  std::vector<std::vector<std::byte>> scratch(8);
  for (int i = 0; i < 8; ++i) {
    Problem& p = problems[static_cast<size_t>(i)];
    p.g.a = p.a.in();  // the vector has moved them
    p.g.b = p.b.in();
    p.g.c = p.c.out();
    scratch[static_cast<size_t>(i)].resize(gemm_scratch_bytes(p.g));
  }
  {
    const Threads guard(4);
    parallel_parts(8, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        gemm(problems[static_cast<size_t>(i)].g, scratch[static_cast<size_t>(i)]);
    });
  }
  for (Problem& p : problems) p.expect_close(s, "nested");
}

TEST(Gemm, SymmetricEqualsFullProduct) {
  for (const Kernels* k : available()) {
    for (DType c : {DType::f32, DType::bf16}) {
      for (int64_t M : {9, 50, 200, 517}) {
        const Scenario s{.form = GemmForm::nt, .M = M, .N = M, .K = 300, .c = c};
        Problem full(s), half(s);
        full.g.b = full.g.a;
        half.g.b = half.g.a;
        half.g.symmetric = true;
        full.run(*k);
        half.run(*k);
        EXPECT_EQ(
            std::memcmp(full.c.data(), half.c.data(), static_cast<size_t>(M * M * size_of(c))), 0)
            << describe(s, *k);
      }
    }
  }
}

TEST(Gemm, BatchedEqualsOneByOne) {
  constexpr int64_t kM{70}, kN{33}, kK{300}, kCount{5};
  std::vector<float> a(kCount * kM * kK), b(kCount * kN * kK), c(kCount * kM * kN), one(kM * kN);
  fill_normal(a.data(), static_cast<int64_t>(a.size()), 1, 1, 0, 1);
  fill_normal(b.data(), static_cast<int64_t>(b.size()), 1, 2, 0, 1);
  Gemm g{.form = GemmForm::nt, .M = kM, .N = kN, .K = kK};
  g.a = {.data = a.data(), .ld = kK};
  g.b = {.data = b.data(), .ld = kK};
  g.c = {.data = c.data(), .ld = kN};
  const GemmBatch batch{
      .count = kCount, .a_stride = kM * kK, .b_stride = kN * kK, .c_stride = kM * kN};
  for (int threads : {1, 2, 8}) {
    const Threads guard(threads);
    std::vector<std::byte> scratch(gemm_batched_scratch_bytes(g, batch));
    std::fill(c.begin(), c.end(), 0.0f);
    gemm_batched(g, batch, scratch);
    for (int64_t i = 0; i < kCount; ++i) {
      Gemm single = g;
      single.a.data = a.data() + i * kM * kK;
      single.b.data = b.data() + i * kN * kK;
      single.c.data = one.data();
      std::vector<std::byte> own(gemm_scratch_bytes(single));
      gemm(single, own);
      EXPECT_EQ(std::memcmp(one.data(), c.data() + i * kM * kN, one.size() * sizeof(float)), 0)
          << threads << " threads, product " << i;
    }
  }
}

TEST(Gemm, SaysWhatIsWrong) {
  const auto message = [](const Gemm& g, size_t scratch_bytes = size_t{1} << 22) -> std::string {
    std::vector<std::byte> scratch(scratch_bytes);
    try {
      gemm(g, scratch);
    } catch (const Error& e) {
      return e.message();
    }
    return "no error";
  };
  std::vector<float> x(64 * 64);
  Gemm g{.form = GemmForm::nt, .M = 8, .N = 8, .K = 16};
  g.a = g.b = {.data = x.data(), .ld = 16};
  g.c = {.data = x.data() + 1024, .ld = 8};
  EXPECT_EQ(message(g), "no error");
  Gemm bad = g;
  bad.a.ld = 15;
  EXPECT_EQ(message(bad), "gemm: A has a row stride of 15, expected at least its 16 columns");
  bad = g;
  bad.b.data = nullptr;
  EXPECT_EQ(message(bad), "gemm: B is empty");
  bad = g;
  bad.c.dtype = DType::i32;
  EXPECT_EQ(message(bad), "gemm: C is i32, expected f32 or bf16");
  bad = g;
  bad.epilogue = GemmEpilogue::relu2;
  bad.accumulate = true;
  EXPECT_EQ(message(bad), "gemm: an epilogue cannot be combined with accumulate");
  bad = g;
  bad.epilogue = GemmEpilogue::add;
  EXPECT_EQ(message(bad), "gemm: the epilogue's input is empty");
  bad.e = {.data = bad.c.data, .ld = 8};
  EXPECT_NE(message(bad).find("the epilogue's input is C itself"), std::string::npos);
  bad = g;
  bad.N = 7;
  bad.symmetric = true;
  EXPECT_NE(message(bad).find("M, N are 8, 7"), std::string::npos);
  bad = g;
  bad.a.row_scale = x.data();
  EXPECT_EQ(message(bad), "gemm: row_scale and col_scale of an operand come together");
  EXPECT_NE(message(g, 10).find("gemm: scratch has 10 bytes, expected"), std::string::npos);
}

}  // namespace
}  // namespace tightloop
