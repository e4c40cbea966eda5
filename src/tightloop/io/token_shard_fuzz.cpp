// Fuzz target: the header of a token shard is read or refused with Error{data}.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/io/token_shard.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file_bytes = static_cast<int64_t>(size);
  try {
    const auto header = tightloop::parse_shard_header({data, size}, file_bytes, "input");
    if (header.count < 0 ||
        tightloop::kShardHeaderBytes + header.count * header.token_bytes != file_bytes)
      std::abort();
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
  return 0;
}
