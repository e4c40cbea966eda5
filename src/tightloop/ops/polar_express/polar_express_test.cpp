#include "tightloop/ops/polar_express/polar_express.h"

#include "tightloop/core/threads.h"
#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

constexpr PolarExpressOptions kNewer{
    .steps = 5, .norm_factor = 1.01, .row_equilibrate = true, .renormalize = true};
constexpr PolarExpressOptions kOlder{
    .steps = 5, .norm_factor = 1.02, .row_equilibrate = false, .renormalize = false};

using Matrix = std::vector<double>;

Matrix random_matrix(const Shape& shape, uint64_t seed) {
  Rng rng(seed, 0);
  Matrix u(static_cast<size_t>(shape.elems()));
  for (double& x : u) x = static_cast<double>(static_cast<float>(rng.normal()));
  return u;
}

/// The factors of matrices of one shape, by one op.
std::vector<Matrix> polars(Device device,
                           const Shape& shape,
                           const std::vector<Matrix>& us,
                           const PolarExpressOptions& options) {
  auto slots = std::make_shared<SlotTable>();
  for (size_t k = 0; k < us.size(); ++k)
    slots->add({fmt::format("u{}", k), {DType::f32, shape}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  std::vector<Value> inputs;
  for (size_t k = 0; k < us.size(); ++k) inputs.push_back(b.slot(fmt::format("u{}", k)));
  const std::vector<Value> x = polar_express(b, inputs, options);
  program.validate();
  Interpreter run(program, device);
  for (size_t k = 0; k < us.size(); ++k) {
    for (int64_t i = 0; i < shape.elems(); ++i)
      run.set(run.slot(fmt::format("u{}", k)), i, us[k][static_cast<size_t>(i)]);
  }
  run.run();
  std::vector<Matrix> results(us.size(), Matrix(us[0].size()));
  for (size_t k = 0; k < us.size(); ++k) {
    for (int64_t i = 0; i < shape.elems(); ++i)
      results[k][static_cast<size_t>(i)] = run.get(run.view(x[k]), i);
  }
  return results;
}

Matrix polar(Device device,
             const Shape& shape,
             const Matrix& u,
             const PolarExpressOptions& options) {
  return polars(device, shape, {u}, options)[0];
}

double norm(const Matrix& x) {
  double squares = 0;
  for (double value : x) squares += value * value;
  return std::sqrt(squares);
}

double distance(const Matrix& x, const Matrix& y) {
  Matrix d(x.size());
  for (size_t i = 0; i < x.size(); ++i) d[i] = x[i] - y[i];
  return norm(d) / norm(y);
}

/// Multiplies by the reflection I - 2 w w^T / |w|^2 with a fixed w: by rows (from the left) or by
/// columns (from the right).
void reflect(Matrix& x, const Shape& shape, bool left) {
  const int64_t m = shape[0], n = shape[1], side = left ? m : n;
  const auto w = [&](int64_t i) { return 1.0 + 0.3 * static_cast<double>(i % 5); };
  double squares = 0;
  for (int64_t i = 0; i < side; ++i) squares += w(i) * w(i);
  for (int64_t other = 0; other < (left ? n : m); ++other) {
    const auto at = [&](int64_t i) -> double& {
      return x[static_cast<size_t>(left ? i * n + other : other * n + i)];
    };
    double dot = 0;
    for (int64_t i = 0; i < side; ++i) dot += w(i) * at(i);
    for (int64_t i = 0; i < side; ++i) at(i) -= 2 * dot / squares * w(i);
  }
}

TEST(PolarExpress, MapsSingularValuesAsPublished) {
  // Singular values 0.5, 0.1, 0.01, 0.001, and one that makes the scaling divide by 1 + 1e-6.
  const double want[] = {0.9106, 1.0592, 1.0271, 0.8589};
  Matrix values{0.5, 0.1, 0.01, 0.001};
  const double scaled = 1.0 / kOlder.norm_factor;
  values.push_back(std::sqrt(scaled * scaled - norm(values) * norm(values)));
  for (Device device : testing::all_devices()) {
    for (const Shape& shape : {Shape{5, 9}, Shape{9, 5}, Shape{5, 5}, Shape{6, 40}}) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), to_string(shape)));
      Matrix u(static_cast<size_t>(shape.elems()), 0.0);
      for (int64_t i = 0; i < 5; ++i)
        u[static_cast<size_t>(i * shape[1] + i)] = values[static_cast<size_t>(i)];
      reflect(u, shape, true), reflect(u, shape, false);
      Matrix x = polar(device, shape, u, kOlder);
      reflect(x, shape, true), reflect(x, shape, false);
      for (int64_t i = 0; i < 4; ++i)
        EXPECT_NEAR(x[static_cast<size_t>(i * shape[1] + i)], want[i], 1e-4) << i;
      for (int64_t i = 0; i < shape.elems(); ++i) {
        if (i / shape[1] != i % shape[1]) {
          EXPECT_NEAR(x[static_cast<size_t>(i)], 0.0, 1e-4) << i;
        }
      }
    }
  }
}

TEST(PolarExpress, MatchesRef) {
  for (const Shape& shape : {Shape{1, 1}, Shape{2, 12}, Shape{12, 2}, Shape{24, 24}, Shape{37, 90},
                             Shape{90, 37}, Shape{128, 512}, Shape{300, 64}}) {
    const Matrix u = random_matrix(shape, 5);
    for (const PolarExpressOptions& options : {kNewer, kOlder}) {
      SCOPED_TRACE(to_string(shape));
      const Matrix ref = polar(Device::ref, shape, u, options);
      for (Device device : testing::tested_devices())
        EXPECT_LE(distance(polar(device, shape, u, options), ref), 2e-5) << name_of(device);
    }
  }
}

TEST(PolarExpress, AStackHoldsWhatEachMatrixGetsAlone) {
  for (const Shape& shape : {Shape{24, 40}, Shape{40, 24}, Shape{7, 9}}) {
    const std::vector<Matrix> us{random_matrix(shape, 1), random_matrix(shape, 2),
                                 random_matrix(shape, 3)};
    for (Device device : testing::all_devices()) {
      SCOPED_TRACE(fmt::format("{} {}", name_of(device), to_string(shape)));
      const std::vector<Matrix> stack = polars(device, shape, us, kNewer);
      for (size_t k = 0; k < us.size(); ++k) {
        const Matrix alone = polar(device, shape, us[k], kNewer);
        // A product of another size may sum in another order on cuda.
        if (device == Device::cuda) {
          EXPECT_LE(distance(stack[k], alone), 2e-5) << k;
        } else {
          EXPECT_EQ(stack[k], alone) << k;
        }
      }
    }
  }
}

TEST(PolarExpress, FewerStepsFollowTheSamePolynomials) {
  // p_1(s) = a s + b s^3 + c s^5 for a 1 x 1 matrix that the scaling brings to s = 1 / 1.02.
  PolarExpressOptions one = kOlder;
  one.steps = 1;
  const double s = 3.0 / (1.02 * 3.0 + 1e-6), s3 = s * s * s;
  const double want =
      8.156554524902461 * s - 22.48329292557795 * s3 + 15.878769915207462 * s3 * s * s;
  EXPECT_NEAR(polar(Device::ref, {1, 1}, {3.0}, one)[0], want, 1e-12);
  EXPECT_NEAR(polar(Device::cpu, {1, 1}, {-3.0}, one)[0], -want, 1e-5);
  PolarExpressOptions two = kOlder;
  two.steps = 2;
  const Matrix u = random_matrix({20, 30}, 8);
  const Matrix ref = polar(Device::ref, {20, 30}, u, two);
  for (Device device : testing::tested_devices())
    EXPECT_LE(distance(polar(device, {20, 30}, u, two), ref), 2e-5) << name_of(device);
}

TEST(PolarExpress, ARandomSquareMatrixBecomesNearlyOrthogonal) {
  const Shape shape{768, 768};
  const Matrix u = random_matrix(shape, 1);
  EXPECT_NEAR(norm(polar(Device::cpu, shape, u, kOlder)), 27.8, 0.2);
  EXPECT_NEAR(norm(polar(Device::cpu, shape, u, kNewer)), std::sqrt(768.0), 1e-3);
}

/// bf16 rounds by up to 2^-9 of a number. In the first step terms of up to 22 leave as little as
/// 0.2: its rounding alone, 22 / 2^9 = 0.04, may move a singular value by a fifth, and so anywhere
/// in the band that the steps lead to, 0.8589..1.1411.
constexpr double kBand{0.2822};
/// Over many singular values such moves cancel for the most part; so do what rounding puts between
/// singular vectors.
constexpr double kBf16Distance{0.05};

TEST(PolarExpress, Bf16OnCudaStaysNearTheReference) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (PolarExpressOptions options : {kNewer, kOlder}) {
    // On Hopper those with sides of multiples of 8 go through symmetric products by halves; the
    // tall ones are then held transposed. Rows up to 1024, 4096 and 8192 wide are equilibrated each
    // in its way, and wider ones in two passes; those of tall ones, below.
    for (const Shape& shape :
         {Shape{1, 1}, Shape{2, 12}, Shape{37, 90}, Shape{90, 37}, Shape{64, 64}, Shape{128, 512},
          Shape{300, 64}, Shape{304, 72}, Shape{200, 264}, Shape{264, 200}, Shape{392, 136},
          Shape{72, 1096}, Shape{16, 4104}, Shape{16, 8200}}) {
      SCOPED_TRACE(to_string(shape));
      const std::vector<Matrix> us{random_matrix(shape, 5), random_matrix(shape, 6),
                                   random_matrix(shape, 7)};
      options.dtype = DType::bf16;
      const std::vector<Matrix> x = polars(Device::cuda, shape, us, options);
      const double most = std::min(shape[0], shape[1]) < 16 ? kBand : kBf16Distance;
      for (size_t k = 0; k < us.size(); ++k)
        EXPECT_LE(distance(x[k], polar(Device::ref, shape, us[k], options)), most) << k;
      EXPECT_EQ(x, polars(Device::cuda, shape, us, options));
    }
  }
}

TEST(PolarExpress, Bf16OnCudaBringsSingularValuesIntoTheBand) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  // Singular values from 0.02 to 0.6 of the norm, between reflections that hide them.
  PolarExpressOptions options = kOlder;
  options.dtype = DType::bf16;
  for (const Shape& shape : {Shape{24, 40}, Shape{40, 24}, Shape{24, 24}}) {
    SCOPED_TRACE(to_string(shape));
    Matrix u(static_cast<size_t>(shape.elems()), 0.0);
    for (int64_t i = 0; i < 24; ++i)
      u[static_cast<size_t>(i * shape[1] + i)] = 0.02 * std::pow(30.0, static_cast<double>(i) / 23);
    reflect(u, shape, true), reflect(u, shape, false);
    Matrix x = polar(Device::cuda, shape, u, options);
    reflect(x, shape, true), reflect(x, shape, false);
    for (int64_t i = 0; i < shape.elems(); ++i) {
      if (i / shape[1] != i % shape[1]) {
        EXPECT_NEAR(x[static_cast<size_t>(i)], 0.0, kBf16Distance) << i;
      } else {
        EXPECT_GE(x[static_cast<size_t>(i)], 0.8589 - kBf16Distance) << i;
        EXPECT_LE(x[static_cast<size_t>(i)], 1.1411 + kBf16Distance) << i;
      }
    }
  }
}

TEST(PolarExpress, Bf16OnCudaTakesTallMatricesAsTransposedWideOnes) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  PolarExpressOptions options = kOlder;  // the one that treats rows and columns alike
  options.dtype = DType::bf16;
  const Shape wide{136, 200}, tall{200, 136};
  const Matrix u = random_matrix(wide, 9);
  Matrix transposed(u.size());
  for (size_t i = 0; i < u.size(); ++i) transposed[i % 200 * 136 + i / 200] = u[i];
  const Matrix x = polar(Device::cuda, wide, u, options);
  const Matrix of_tall = polar(Device::cuda, tall, transposed, options);
  Matrix back(u.size());
  for (size_t i = 0; i < u.size(); ++i) back[i] = of_tall[i % 200 * 136 + i / 200];
  EXPECT_LE(distance(back, x), kBf16Distance);
}

TEST(PolarExpress, Bf16OnCudaTakesTallMatricesOfAnyWidth) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  // Rows up to 768, 1280 and 2048 wide are equilibrated each in its way.
  PolarExpressOptions exact = kNewer, half = kNewer;
  half.dtype = DType::bf16;
  for (const Shape& shape : {Shape{1000, 768}, Shape{920, 776}, Shape{1544, 1288}}) {
    SCOPED_TRACE(to_string(shape));
    const Matrix u = random_matrix(shape, 4);
    EXPECT_LE(distance(polar(Device::cuda, shape, u, half), polar(Device::cuda, shape, u, exact)),
              kBf16Distance);
  }
}

TEST(PolarExpress, Bf16OnCudaKeepsRowsAndMatricesOfZeros) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  for (PolarExpressOptions options : {kNewer, kOlder}) {
    options.dtype = DType::bf16;
    for (const Shape& shape : {Shape{64, 128}, Shape{128, 64}, Shape{13, 30}}) {
      SCOPED_TRACE(to_string(shape));
      std::vector<Matrix> us{random_matrix(shape, 1), Matrix(random_matrix(shape, 2).size(), 0.0),
                             random_matrix(shape, 3)};
      const auto width = static_cast<size_t>(shape[1]);
      for (size_t i = 0; i < width; ++i) us[2][3 * width + i] = 0.0;
      const std::vector<Matrix> x = polars(Device::cuda, shape, us, options);
      const double most = std::min(shape[0], shape[1]) < 16 ? kBand : kBf16Distance;
      for (size_t k : {size_t{0}, size_t{2}})
        EXPECT_LE(distance(x[k], polar(Device::ref, shape, us[k], options)), most) << k;
      for (double value : x[1]) EXPECT_EQ(value, 0.0);
      for (size_t i = 0; i < width; ++i) EXPECT_EQ(x[2][3 * width + i], 0.0);
    }
  }
}

TEST(PolarExpress, EquilibrationForgetsTheScaleOfRows) {
  const Shape shape{12, 30};
  const Matrix u = random_matrix(shape, 2);
  Matrix scaled = u;
  for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= 0.1 * static_cast<double>(1 + i / 30);
  const Matrix plain = polar(Device::cpu, shape, u, kNewer);
  EXPECT_LE(distance(polar(Device::cpu, shape, scaled, kNewer), plain), 1e-5);
  EXPECT_GE(distance(polar(Device::cpu, shape, scaled, kOlder), plain), 1e-2);
}

TEST(PolarExpress, ZeroStaysZero) {
  for (const PolarExpressOptions& options : {kNewer, kOlder}) {
    for (Device device : testing::tested_devices()) {
      for (double x : polar(device, {3, 7}, Matrix(21, 0.0), options))
        EXPECT_EQ(x, 0.0) << name_of(device);
    }
  }
}

TEST(PolarExpress, SameBitsForAnyNumberOfThreads) {
  const int threads_before = thread_count();
  const Shape shape{200, 70};
  const Matrix u = random_matrix(shape, 3);
  set_thread_count(1);
  const Matrix one = polar(Device::cpu, shape, u, kNewer);
  set_thread_count(4);
  EXPECT_EQ(one, polar(Device::cpu, shape, u, kNewer));
  set_thread_count(threads_before);
}

TEST(PolarExpress, RefusesWhatIsNoMatrixAndStepsItDoesNotHave) {
  auto slots = std::make_shared<SlotTable>();
  slots->add({"v", {DType::f32, {4}}, SlotRole::input});
  slots->add({"u", {DType::f32, {4, 3}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  EXPECT_EQ(testing::error_of(ErrorKind::shape, [&] { polar_express(b, {b.slot("v")}, kNewer); }),
            "polar_express: u has shape (4), expected rank 2");
  PolarExpressOptions six = kNewer;
  six.steps = 6;
  EXPECT_EQ(testing::error_of(ErrorKind::usage, [&] { polar_express(b, {b.slot("u")}, six); }),
            "polar_express: 6 steps, expected 1 to 5");
  PolarExpressOptions wide = kNewer;
  wide.dtype = DType::f64;
  EXPECT_EQ(testing::error_of(ErrorKind::dtype, [&] { polar_express(b, {b.slot("u")}, wide); }),
            "polar_express: dtype is f64, expected f32 or bf16");
  slots->add({"t", {DType::f32, {3, 4}}, SlotRole::input});
  EXPECT_EQ(testing::error_of(ErrorKind::shape,
                              [&] {
                                polar_express(b, {b.slot("u"), b.slot("t")}, kNewer);
                              }),
            "polar_express: u has shape (3, 4), expected (4, 3)");
  EXPECT_EQ(
      testing::error_of(ErrorKind::shape,
                        [&] { polar_express(b, std::vector<Value>(65, b.slot("u")), kNewer); }),
      "polar_express: 65 matrices, expected 1 to 64");
}

}  // namespace
}  // namespace tightloop
