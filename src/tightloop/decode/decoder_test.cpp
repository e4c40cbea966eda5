#include "tightloop/decode/decoder.h"

#include <cmath>

#include "tightloop/core/rng.h"
#include "tightloop/core/unit_testing.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/basic/basic.h"

namespace tightloop {
namespace {

constexpr int64_t kTokens = 200, kVocab = 100;

/// Longer than the short window (128 in both recipes) and than several prompt chunks; two query
/// heads share keys.
NanochatConfig model_of(Recipe recipe) {
  NanochatConfig c = nanochat_from_depth(recipe, 4, 16, 16, 256, kVocab, "SSL");
  c.n_kv_head = 2;
  return c;
}

std::vector<int32_t> random_tokens() {
  Rng rng(8, 0);
  std::vector<int32_t> tokens(kTokens);
  for (int32_t& t : tokens) t = static_cast<int32_t>(rng.below(kVocab));
  return tokens;
}

/// The whole sequence at once, by the Program that training differentiates.
class Whole {
 public:
  explicit Whole(const NanochatConfig& config) : config_(config) {
    declare_nanochat(*table_, config, DType::f32, kTokens);
    table_->add({"tokens", {DType::i32, {1, kTokens}}, SlotRole::input});
    Program program("whole", table_);
    Builder b(program, op_table());
    const Value logits = nanochat_logits(b, config, b.slot("tokens"));
    table_->add({"logits", program.type(logits), SlotRole::output});
    store(b, logits, b.slot("logits"), false);
    const Plan plan = make_plan(program, Device::cpu);
    slots_ = std::make_unique<SlotStore>(table_, Device::cpu);
    for (NanochatParameter p : nanochat_parameters(config)) {
      // What starts at zero would hide what flows through it.
      if (p.init.kind == Init::Kind::zero) p.init = {Init::Kind::normal, 0.3, 0.1};
      init_parameter(p, 1, slots_->view(p.name));
    }
    init_rope_table(config, slots_->view("rope_table"));
    const std::vector<int32_t> tokens = random_tokens();
    std::copy(tokens.begin(), tokens.end(), slots_->view("tokens").as<int32_t>());
    const Workspace workspace({&plan});
    Executable(program, plan, *slots_, workspace).run();
  }

  const SlotStore& slots() const { return *slots_; }
  const float* logits(int64_t position) const {
    return slots_->view("logits").as<float>() + position * config_.padded_vocab();
  }

 private:
  NanochatConfig config_;
  std::shared_ptr<SlotTable> table_ = std::make_shared<SlotTable>();
  std::unique_ptr<SlotStore> slots_;
};

double worst_error(std::span<const float> got, const float* want) {
  double worst = 0.0, scale = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    worst = std::max(worst, static_cast<double>(std::abs(got[i] - want[i])));
    scale = std::max(scale, static_cast<double>(std::abs(want[i])));
  }
  return worst / scale;
}

TEST(Decoder, LogitsAreThoseOfTheWholeSequence) {
  const std::vector<int32_t> tokens = random_tokens();
  for (const Recipe recipe : {Recipe::nanochat_2026_02, Recipe::nanochat_2026_07}) {
    const NanochatConfig config = model_of(recipe);
    ASSERT_LT(config.window(0), kTokens - Decoder::kChunk);
    const Whole whole(config);
    Decoder decoder(config, DType::f32, 256, &whole.slots());
    // Pieces that end inside, at and behind chunks of 32; then again after a reset.
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>{1, 31, 1, 70, 33, 64}, std::vector<int64_t>{96, 104}}) {
      decoder.reset();
      int64_t done = 0;
      for (const int64_t piece : pieces) {
        const auto logits = decoder.forward(
            std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(piece)));
        done += piece;
        ASSERT_EQ(logits.size(), static_cast<size_t>(kVocab));
        // float32 sums in another order, through four layers.
        EXPECT_LE(worst_error(logits, whole.logits(done - 1)), 2e-5)
            << name_of(recipe) << " after " << done << " tokens";
      }
      EXPECT_EQ(done, kTokens);
    }
  }
}

TEST(Decoder, GreedyTextTakesTheLargestLogit) {
  const NanochatConfig config = model_of(Recipe::nanochat_2026_07);
  const Whole whole(config);
  Decoder decoder(config, DType::f32, 256, &whole.slots());
  const std::vector<int32_t> tokens = random_tokens();
  const GenerateOptions greedy{.max_tokens = 20, .sampling = {.temperature = 0.0}};
  const GenerateResult made = generate(decoder, tokens, greedy, {}, [](int32_t) { return true; });
  ASSERT_EQ(made.tokens.size(), 20u);
  Decoder again(config, DType::f32, 256, &whole.slots());
  std::span<const float> logits = again.forward(tokens);
  for (const int32_t token : made.tokens) {
    const auto largest = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_EQ(token, largest);
    logits = again.forward({&token, 1});
  }
}

TEST(Decoder, EndsWhereAsked) {
  const NanochatConfig config = model_of(Recipe::nanochat_2026_07);
  const Whole whole(config);
  Decoder decoder(config, DType::f32, 64, &whole.slots());
  const std::vector<int32_t> prompt{1, 2, 3};
  const GenerateOptions options{.max_tokens = 30, .sampling = {.seed = 4}};
  const auto every = [](int32_t) { return true; };
  const GenerateResult all = generate(decoder, prompt, options, {}, every);
  ASSERT_EQ(all.tokens.size(), 30u);
  EXPECT_EQ(generate(decoder, prompt, options, {}, every).tokens, all.tokens);
  // The end token is not part of the text, and callers may stop earlier.
  const int32_t end = all.tokens[10];
  const GenerateResult ended = generate(decoder, prompt, options, end, every);
  EXPECT_TRUE(ended.stopped_at_eos);
  EXPECT_LE(ended.tokens.size(), 10u);
  EXPECT_EQ(std::count(ended.tokens.begin(), ended.tokens.end(), end), 0);
  int left = 5;
  EXPECT_EQ(
      generate(decoder, prompt, options, {}, [&](int32_t) { return --left > 0; }).tokens.size(),
      5u);
}

TEST(Decoder, RefusesWhatDoesNotFit) {
  const NanochatConfig config = model_of(Recipe::nanochat_2026_07);
  const Whole whole(config);
  Decoder decoder(config, DType::f32, 64, &whole.slots());
  const std::vector<int32_t> long_text(65, 1);
  expect_error(ErrorKind::usage, "65 tokens do not fit: the cache holds 64",
               [&] { decoder.forward(long_text); });
  expect_error(ErrorKind::data, "token 100 is outside the model's vocabulary of 100",
               [&] { decoder.forward(std::vector<int32_t>{kVocab}); });
  expect_error(ErrorKind::usage, "ask for at most 60 new", [&] {
    generate(decoder, std::vector<int32_t>(4, 1), {.max_tokens = 61}, {},
             [](int32_t) { return true; });
  });
  expect_error(ErrorKind::usage, "f32 or bf16", [&] { Decoder(config, DType::f64, 64); });
}

}  // namespace
}  // namespace tightloop
