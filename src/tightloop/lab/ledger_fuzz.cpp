// Fuzz target: a lab folder is opened or refused with Error{data, io}. The input is its
// ledger.sqlite (when it begins like one), or after a NUL the bytes that differ from a good one
// (offset of 2 bytes, value), or the values in its results.csv: one a line, run_id first, an empty
// line between rows. What opened has the same rows when it is opened again, and nothing is left to
// copy from one file to the other. A folder with the values must open.
#include <algorithm>
#include <cstdlib>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/csv.h"
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

/// The ledger.sqlite of two runs.
std::string good_database() {
  const tightloop::FuzzFolder folder;
  {
    tightloop::Ledger ledger(folder.path());
    for (const char* id : {"20260101-G.baseline.s1-1a2b3c", "20260101-G.both.s1-4d5e6f"}) {
      tightloop::LedgerRow row;
      row.set("run_id", std::string(id));
      row.set("status", std::string("ok"));
      row.set("seed", int64_t{1});
      row.set("final_val_loss", 1.25);
      ledger.add(row);
    }
  }
  return tightloop::read_file(folder.path() + "/ledger.sqlite");
}

std::string csv_of(std::string_view input) {
  const std::vector<std::string>& columns = tightloop::ledger_columns();
  const auto id = std::find(columns.begin(), columns.end(), "run_id") - columns.begin();
  std::string csv = tightloop::csv_header(columns).text() + "\n";
  while (!input.empty()) {
    std::vector<std::string> fields(columns.size());
    for (auto at = static_cast<size_t>(id); !input.empty(); ++at) {
      const size_t end = std::min(input.find('\n'), input.size());
      const std::string_view line = input.substr(0, end);
      input.remove_prefix(std::min(end + 1, input.size()));
      if (line.empty()) break;
      fields[at % fields.size()] = line;
    }
    csv += tightloop::csv_header(fields).text() + "\n";
  }
  return csv;
}

/// Whether it wrote a folder that must open.
bool write_input(const tightloop::FuzzFolder& folder, std::string_view input) {
  if (input.starts_with("SQLite format 3")) {
    folder.write("ledger.sqlite", input);
    return false;
  }
  if (input.starts_with('\0')) {
    static const std::string good = good_database();
    std::string bytes = good;
    for (size_t i = 1; i + 3 <= input.size(); i += 3) {
      const size_t offset =
          256 * static_cast<uint8_t>(input[i]) + static_cast<uint8_t>(input[i + 1]);
      bytes[offset % bytes.size()] = input[i + 2];
    }
    folder.write("ledger.sqlite", bytes);
    return false;
  }
  folder.write("results.csv", csv_of(input));
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tightloop::ErrorKind;
  static const tightloop::FuzzFolder folder;
  folder.clear();
  const bool is_sound = write_input(folder, {reinterpret_cast<const char*>(data), size});
  std::vector<std::string> first;
  try {
    first = texts_of(tightloop::Ledger(folder.path()));
  } catch (const tightloop::Error& error) {
    if (is_sound || (error.kind() != ErrorKind::data && error.kind() != ErrorKind::io))
      std::abort();
    return 0;
  }
  const tightloop::Ledger again(folder.path());
  if (again.reconciled() != 0 || texts_of(again) != first) std::abort();
  return 0;
}
