#include "tightloop/text/bpe_case.h"

#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/json.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

BpeCaseResult run_bpe_case(const std::string& folder) {
  const std::filesystem::path root(folder);
  const std::string name = (root / "case.json").string();
  const Json file = read_json(name);
  if (const std::string model = get_string(file, "model", name); model != "bpe")
    fail(ErrorKind::data, "{}: field 'model' is \"{}\", expected \"bpe\"", name, model);
  const Tokenizer tokenizer = Tokenizer::load((root / "tokenizer.json").string());
  const Json& cases = get_array(file, "cases", name);

  BpeCaseResult result;
  result.cases = static_cast<int64_t>(cases.size());
  result.vocab_size = tokenizer.vocab_size();
  result.expected_vocab_size = get_int(file, "vocab_size", name, result.vocab_size);
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string where = fmt::format("{}: cases[{}]", name, i);
    const std::string text = get_string(cases[i], "text", where);
    std::vector<int32_t> expected;
    for (const Json& id : get_array(cases[i], "ids", where)) {
      if (!id.is_number_integer()) fail(ErrorKind::data, "{}: an id is no integer", where);
      expected.push_back(id.get<int32_t>());
    }
    std::vector<int32_t> got = tokenizer.encode(text, SpecialTokens::recognise);
    std::string decoded = tokenizer.decode(got);
    result.tokens += static_cast<int64_t>(got.size());
    if (got != expected || decoded != text)
      result.failures.push_back(
          {static_cast<int64_t>(i), text, std::move(expected), std::move(got), std::move(decoded)});
  }
  return result;
}

}  // namespace tightloop
