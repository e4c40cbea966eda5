#include "tightloop/ops/sample/sample.h"

#include <map>

#include "tightloop/ops/common/op_testing.h"

namespace tightloop {
namespace {

/// Tokens that one run draws from the same logits, one per uniform, on `device`.
std::vector<int> draw(const std::vector<double>& logits,
                      const std::vector<double>& uniforms,
                      SampleOptions options,
                      Device device = Device::cpu) {
  const auto rows = static_cast<int64_t>(uniforms.size()),
             cols = static_cast<int64_t>(logits.size());
  if (options.vocab == 0) options.vocab = cols;
  auto slots = std::make_shared<SlotTable>();
  slots->add({"logits", {DType::f32, {rows, cols}}, SlotRole::input});
  slots->add({"uniform", {DType::f32, {rows}}, SlotRole::input});
  Program program("p", slots);
  Builder b(program, op_table());
  const Value token = sample(b, b.slot("logits"), b.slot("uniform"), options);
  Interpreter run(program, device);
  for (int64_t r = 0; r < rows; ++r) {
    run.set(run.slot("uniform"), r, uniforms[static_cast<size_t>(r)]);
    for (int64_t c = 0; c < cols; ++c)
      run.set(run.slot("logits"), r * cols + c, logits[static_cast<size_t>(c)]);
  }
  run.run();
  std::vector<int> tokens;
  for (int64_t r = 0; r < rows; ++r)
    tokens.push_back(static_cast<int>(run.get(run.view(token), r)));
  return tokens;
}

std::vector<double> grid(int n) {
  std::vector<double> uniforms;
  for (int i = 0; i < n; ++i) uniforms.push_back((i + 0.5) / n);
  return uniforms;
}

/// How many of 1000 evenly spaced uniforms give each token.
std::map<int, int> histogram(const std::vector<double>& logits, const SampleOptions& options) {
  const std::vector<int> cpu = draw(logits, grid(1000), options);
  EXPECT_EQ(cpu, draw(logits, grid(1000), options, Device::ref));
  std::map<int, int> counts;
  for (int token : cpu) ++counts[token];
  return counts;
}

using Counts = std::map<int, int>;

// Probabilities 0.1, 0.4, 0.2, 0.3.
const std::vector<double> kLogits{std::log(0.1), std::log(0.4), std::log(0.2), std::log(0.3)};

TEST(Sample, DrawsInProportionByInverseCdf) {
  EXPECT_EQ(histogram(kLogits, {}), (Counts{{0, 100}, {1, 400}, {2, 200}, {3, 300}}));
  EXPECT_EQ(draw(kLogits, {0.05, 0.11, 0.49, 0.51, 0.69, 0.71, 0.999}, {}),
            (std::vector<int>{0, 1, 1, 2, 2, 3, 3}));
}

TEST(Sample, Temperature) {
  // Squared and renormalised: 1, 16, 4, 9 of 30.
  EXPECT_EQ(histogram(kLogits, {.temperature = 0.5}),
            (Counts{{0, 33}, {1, 534}, {2, 133}, {3, 300}}));
}

TEST(Sample, GreedyTakesTheLowestOfEqualLogits) {
  const std::vector<double> logits{1.0, 3.0, 2.0, 3.0};
  for (const Device device : {Device::cpu, Device::ref})
    EXPECT_EQ(draw(logits, {0.99}, {.temperature = 0.0}, device), std::vector<int>{1});
}

TEST(Sample, TopK) {
  EXPECT_EQ(histogram(kLogits, {.top_k = 1}), (Counts{{1, 1000}}));
  EXPECT_EQ(histogram(kLogits, {.top_k = 2}), (Counts{{1, 571}, {3, 429}}));
  EXPECT_EQ(histogram(kLogits, {.top_k = 9}).size(), 4u);
  // Of equal logits the lowest ids stay.
  EXPECT_EQ(histogram({0.0, 0.0, 0.0, 0.0}, {.top_k = 2}), (Counts{{0, 500}, {1, 500}}));
}

TEST(Sample, TopPKeepsTheFewestThatReachTheShare) {
  EXPECT_EQ(histogram(kLogits, {.top_p = 0.39}), (Counts{{1, 1000}}));
  EXPECT_EQ(histogram(kLogits, {.top_p = 0.41}).size(), 2u);
  EXPECT_EQ(histogram(kLogits, {.top_p = 0.69}).size(), 2u);
  EXPECT_EQ(histogram(kLogits, {.top_p = 0.71}).size(), 3u);
  EXPECT_EQ(histogram(kLogits, {.top_p = 1e-9}), (Counts{{1, 1000}}));
}

TEST(Sample, FiltersWorkOnWhatTheOnesBeforeKept) {
  // After top-k 2 token 1 holds 4/7 = 0.571 of what is left.
  EXPECT_EQ(histogram(kLogits, {.top_k = 2, .top_p = 0.56}), (Counts{{1, 1000}}));
  EXPECT_EQ(histogram(kLogits, {.top_p = 0.56}).size(), 2u);
  // Temperature comes first: at 0.5 token 1 holds 16/30 = 0.533.
  EXPECT_EQ(histogram(kLogits, {.temperature = 0.5, .top_p = 0.53}), (Counts{{1, 1000}}));
}

TEST(Sample, MinP) {
  // Shares of the most probable: 0.25, 1, 0.5, 0.75.
  EXPECT_EQ(histogram(kLogits, {.min_p = 0.74}), (Counts{{1, 571}, {3, 429}}));
  EXPECT_EQ(histogram(kLogits, {.min_p = 0.76}), (Counts{{1, 1000}}));
  EXPECT_EQ(histogram(kLogits, {.min_p = 1.0}), (Counts{{1, 1000}}));
}

TEST(Sample, PaddingIsNeverDrawn) {
  std::vector<double> logits = kLogits;
  logits.insert(logits.end(), {50.0, 60.0});
  EXPECT_EQ(histogram(logits, {.vocab = 4}), (Counts{{0, 100}, {1, 400}, {2, 200}, {3, 300}}));
  EXPECT_EQ(draw(logits, {0.5}, {.vocab = 4, .temperature = 0.0}), std::vector<int>{1});
}

TEST(Sample, CpuMatchesRefOnALargeVocabulary) {
  Rng rng(3, 0);
  std::vector<double> logits;
  for (int i = 0; i < 3000; ++i)
    logits.push_back(static_cast<double>(static_cast<float>(2.0 * rng.normal())));
  for (const SampleOptions& o :
       {SampleOptions{}, SampleOptions{.top_k = 50}, SampleOptions{.top_p = 0.9},
        SampleOptions{.temperature = 0.7, .top_k = 400, .top_p = 0.8, .min_p = 0.05}}) {
    EXPECT_EQ(draw(logits, grid(200), o), draw(logits, grid(200), o, Device::ref));
  }
}

TEST(Sample, MinusInfinityIsAMaskedToken) {
  EXPECT_EQ(histogram({-HUGE_VAL, 0.0, -HUGE_VAL, 0.0}, {}), (Counts{{1, 500}, {3, 500}}));
}

TEST(Sample, RefusesOptionsAndLogitsOutOfRange) {
  const auto error = [](ErrorKind kind, const SampleOptions& o, double logit = 0.0) {
    return testing::error_of(kind, [&] { draw({0.0, logit}, {0.5}, o); });
  };
  EXPECT_EQ(error(ErrorKind::shape, {.vocab = 3}),
            "sample: vocab is 3, expected 1 to 2 (columns of logits)");
  EXPECT_EQ(error(ErrorKind::usage, {.temperature = -1.0}),
            "sample: temperature is -1, expected 0 or more");
  EXPECT_EQ(error(ErrorKind::usage, {.top_k = -1}), "sample: top_k is -1, expected 0 or more");
  EXPECT_EQ(error(ErrorKind::usage, {.top_p = 0.0}),
            "sample: top_p is 0, expected more than 0 and at most 1");
  EXPECT_EQ(error(ErrorKind::usage, {.min_p = 2.0}), "sample: min_p is 2, expected 0 to 1");
  EXPECT_EQ(error(ErrorKind::numeric, {}, std::nan("")),
            "sample: the largest logit of row 0 is nan, expected a finite number");
  EXPECT_EQ(error(ErrorKind::numeric, {.temperature = 0.0}, HUGE_VAL),
            "sample: the largest logit of row 0 is inf, expected a finite number");
}

}  // namespace
}  // namespace tightloop
