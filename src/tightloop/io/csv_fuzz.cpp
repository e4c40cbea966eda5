// Fuzz target: a CSV table is read or refused with Error{data}, and its rows written again read
// back the same.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/io/csv.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto table = tightloop::parse_csv(text, "input");
    std::string again = tightloop::csv_header(table.columns).text() + "\n";
    for (const auto& row : table.rows) again += tightloop::csv_header(row).text() + "\n";
    const auto reread = tightloop::parse_csv(again, "again");
    if (reread.columns != table.columns || reread.rows != table.rows) std::abort();
  } catch (const tightloop::Error& error) {
    if (error.kind() != tightloop::ErrorKind::data) std::abort();
  }
  return 0;
}
