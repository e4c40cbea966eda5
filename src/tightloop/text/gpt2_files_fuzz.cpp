// Fuzz target: GPT-2's pair of files (the input up to its first NUL, and the rest) is read or
// refused with an Error; what was read encodes any text, and is itself after a detour through
// tokenizer.json.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tightloop::ErrorKind;
  using tightloop::Tokenizer;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  tightloop::Gpt2Files files{text.substr(0, cut), ""};
  if (cut != std::string::npos) files.merges_txt = text.substr(cut + 1);
  try {
    const Tokenizer tokenizer = Tokenizer::from_gpt2(files);
    if (Tokenizer::from_json(tokenizer.to_json()).content_hash() != tokenizer.content_hash())
      std::abort();
    tokenizer.decode(tokenizer.encode("The hero's\t12  caf\xc3\xa9 \xff<|endoftext|>"));
  } catch (const tightloop::Error& error) {
    if (error.kind() != ErrorKind::data && error.kind() != ErrorKind::unsupported) std::abort();
  }
  return 0;
}
