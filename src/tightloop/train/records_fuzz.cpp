// Fuzz target: the JSON that a run reads back (corpus.json, a checkpoint's config.json and its data
// cursor) is read or refused with Error{data}; a cursor that was read writes itself the same.
#include <cstdlib>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/json.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/train/data/pack.h"
#include "tightloop/train/data/synth.h"

namespace {

template <typename Read>
void only_data_errors(const Read& read) {
  try {
    read();
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  only_data_errors([&] { tightloop::parse_corpus_info(text, "corpus.json"); });
  only_data_errors([&] { tightloop::nanochat_config_from_json(text, "config.json"); });
  only_data_errors([&] {
    const auto cursor = tightloop::data_cursor_from_json(tightloop::parse_json(text, "state.json"));
    if (!(tightloop::data_cursor_from_json(tightloop::to_json(cursor)) == cursor)) std::abort();
  });
  return 0;
}
