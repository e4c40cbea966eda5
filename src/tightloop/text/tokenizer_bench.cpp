// Encoding and training rates on one thread. Text and tokenizers come from TL_BENCH_TEXT (a file)
// and TL_BENCH_TOKENIZER (a tokenizer.json or folder); without them, made-up English words and a
// tokenizer trained on them.
#include <cstdlib>
#include <string>

#include <benchmark/benchmark.h>

#include "tightloop/core/file.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/threads.h"
#include "tightloop/text/bpe_train.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {
namespace {

/// 8 MB of words with Zipf-like frequencies, lengths of 1 to 12 letters.
std::string made_up_text() {
  Rng rng(1, 0);
  std::vector<std::string> words;
  for (int i = 0; i < 20000; ++i) {
    std::string word;
    for (uint64_t n = 1 + rng.below(12); n > 0; --n)
      word += "etaoinshrdlucmfwypvbgkjqxz"[rng.below(1 + rng.below(26))];
    words.push_back(word);
  }
  std::string text;
  while (text.size() < (8 << 20)) {
    text += words[rng.below(1 + rng.below(1 + rng.below(words.size())))];
    text += rng.below(12) == 0 ? ".\n" : " ";
  }
  return text;
}

const std::string& text() {
  static const std::string value = [] {
    const char* path = std::getenv("TL_BENCH_TEXT");
    return path == nullptr ? made_up_text() : read_file(path);
  }();
  return value;
}

/// The text in documents of about 4 KiB.
std::vector<std::string_view> documents() {
  std::vector<std::string_view> out;
  for (std::string_view left = text(); !left.empty();) {
    const size_t end = std::min(left.find(' ', 4096), left.size());
    out.push_back(left.substr(0, end));
    left.remove_prefix(end);
  }
  return out;
}

const Tokenizer& tokenizer() {
  static const Tokenizer value = [] {
    const char* path = std::getenv("TL_BENCH_TOKENIZER");
    if (path != nullptr) return Tokenizer::load(path);
    BpeTrainer trainer({});
    trainer.add(documents());
    return trainer.train();
  }();
  return value;
}

void encode_documents(benchmark::State& state) {
  set_thread_count(static_cast<int>(state.range(0)));
  tokenizer();
  const auto docs = documents();
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().encode_batch(docs));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text().size()));
}
BENCHMARK(encode_documents)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();

void decode_text(benchmark::State& state) {
  const auto ids = tokenizer().encode(text());
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().decode(ids));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text().size()));
}
BENCHMARK(decode_text)->Unit(benchmark::kMillisecond);

void train_32k(benchmark::State& state) {
  set_thread_count(static_cast<int>(state.range(0)));
  const auto docs = documents();
  for (auto _ : state) {
    BpeTrainer trainer({});
    trainer.add(docs);
    benchmark::DoNotOptimize(trainer.train().vocab_size());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text().size()));
}
BENCHMARK(train_32k)->Arg(2)->Unit(benchmark::kMillisecond)->Iterations(1)->UseRealTime();

void load(benchmark::State& state) {
  const std::string json = tokenizer().to_json();
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::from_json(json).vocab_size());
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tightloop

BENCHMARK_MAIN();
