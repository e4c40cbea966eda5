// Fuzz target: a TOML document is read or refused with Error{data}, and what is read is written as
// TOML that reads back the same.
#include <cstdlib>
#include <string_view>

#include "tightloop/core/error.h"
#include "tightloop/io/toml_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    for (const auto& entry : tightloop::parse_toml(text, "input")) {
      const std::string written = tightloop::to_string(entry.value);
      const auto again = tightloop::parse_toml("x = " + written, "again");
      if (again.size() != 1 || tightloop::to_string(again[0].value) != written) std::abort();
    }
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
  try {
    tightloop::parse_setting(text);
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::usage) std::abort();
  }
  return 0;
}
