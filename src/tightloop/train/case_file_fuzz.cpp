// Fuzz target: the case.json of a parity case is read or refused with an Error.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/train/case_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tightloop::ErrorKind;
  try {
    const auto c =
        tightloop::parse_nanochat_case({reinterpret_cast<const char*>(data), size}, "in");
    if (c.steps != static_cast<int64_t>(c.losses.size())) std::abort();
  } catch (const tightloop::Error& error) {
    if (error.kind() != ErrorKind::data && error.kind() != ErrorKind::unsupported) std::abort();
  }
  return 0;
}
