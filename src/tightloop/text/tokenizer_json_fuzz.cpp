// Fuzz target: a tokenizer.json is read or refused with an Error. What was read encodes any text,
// and written again reads back the same.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tightloop::ErrorKind;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = tightloop::Tokenizer::from_json(text, "input");
    const auto again = tightloop::Tokenizer::from_json(tokenizer.to_json(), "again");
    if (again.content_hash() != tokenizer.content_hash()) std::abort();
    const auto ids = tokenizer.encode("The hero's\t12  <|bos|>\n\xff caf\xc3\xa9",
                                      tightloop::SpecialTokens::recognise);
    tokenizer.decode(ids);
  } catch (const tightloop::Error& error) {
    if (error.kind() != ErrorKind::data && error.kind() != ErrorKind::unsupported) std::abort();
  }
  return 0;
}
