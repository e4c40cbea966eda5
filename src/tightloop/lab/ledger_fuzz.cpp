// Fuzz target: a lab folder whose ledger.sqlite (where the input begins like one) or results.csv
// is the input is opened or refused with Error{data, io}. Opened again it has the same rows, and
// nothing is left to copy from one file to the other.
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/io/fuzz_files.h"
#include "tightloop/lab/ledger.h"

namespace {

std::vector<std::string> texts_of(const tightloop::Ledger& ledger) {
  std::vector<std::string> texts;
  for (const tightloop::LedgerRow& row : ledger.rows()) {
    for (const std::string& column : tightloop::ledger_columns()) texts.push_back(row.text(column));
  }
  return texts;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tightloop::ErrorKind;
  static const tightloop::FuzzFolder folder;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  folder.clear();
  folder.write(bytes.starts_with("SQLite format 3") ? "ledger.sqlite" : "results.csv", bytes);
  std::vector<std::string> first;
  try {
    first = texts_of(tightloop::Ledger(folder.path()));
  } catch (const tightloop::Error& error) {
    if (error.kind() != ErrorKind::data && error.kind() != ErrorKind::io) std::abort();
    return 0;
  }
  const tightloop::Ledger again(folder.path());
  if (again.reconciled() != 0 || texts_of(again) != first) std::abort();
  return 0;
}
