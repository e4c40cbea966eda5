// Fuzz target: a safetensors file given as bytes is listed or refused with Error{data}.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto index = tightloop::parse_safetensors({data, size}, "input");
    for (const auto& entry : index.entries)
      if (entry.offset < 0 || entry.offset + entry.bytes > static_cast<int64_t>(size)) std::abort();
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
  return 0;
}
