#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tightloop {

/// One text of a parity case that did not encode, or decode, as it must.
struct BpeFailure {
  int64_t index = 0;
  std::string text;
  std::vector<int32_t> expected;
  std::vector<int32_t> got;
  std::string decoded;
};

struct BpeCaseResult {
  int64_t cases = 0;
  int64_t tokens = 0;
  int64_t expected_vocab_size = 0;
  int64_t vocab_size = 0;
  std::vector<BpeFailure> failures;

  bool passed() const { return failures.empty() && vocab_size == expected_vocab_size; }
};

/// Runs the parity case in `folder`: case.json ("model": "bpe") beside a tokenizer.json. Each text
/// must encode to the listed ids, special tokens recognised, and the ids must decode to the text.
/// Error{io}, Error{data} when the files are missing or wrong.
BpeCaseResult run_bpe_case(const std::string& folder);

}  // namespace tightloop
