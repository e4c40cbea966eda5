#include "tightloop/io/csv.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "tightloop/core/error.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

template <typename T>
std::string to_shortest(T value) {
  if (std::isnan(value)) return "nan";
  std::array<char, 64> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return std::string(buffer.data(), result.ptr);
}

struct Record {
  std::vector<std::string> fields;
  int64_t line = 0;
  bool open_quote = false;
};

/// Splits text into records; an empty line is no record.
std::vector<Record> split_records(std::string_view text) {
  std::vector<Record> records;
  int64_t line = 1;
  size_t i = 0;
  while (i < text.size()) {
    Record record;
    record.line = line;
    bool ended = false;
    while (!ended) {
      std::string field;
      if (i < text.size() && text[i] == '"') {
        ++i;
        record.open_quote = true;
        while (i < text.size()) {
          if (text[i] == '"') {
            if (i + 1 == text.size() || text[i + 1] != '"') {
              ++i;
              record.open_quote = false;
              break;
            }
            ++i;
          }
          if (text[i] == '\n') ++line;
          field += text[i++];
        }
      }
      // Outside quotes; whatever follows a closing quote is kept as it is.
      while (i < text.size() && text[i] != ',' && text[i] != '\n') {
        if (!(text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n')) field += text[i];
        ++i;
      }
      record.fields.push_back(std::move(field));
      ended = i == text.size() || text[i] == '\n';
      if (i < text.size()) ++i;
    }
    ++line;
    const bool blank = record.fields.size() == 1 && record.fields[0].empty();
    if (!blank) records.push_back(std::move(record));
  }
  return records;
}

}  // namespace

std::string shortest(double value) {
  return to_shortest(value);
}
std::string shortest(float value) {
  return to_shortest(value);
}

CsvRow& CsvRow::add(std::string_view text) {
  if (fields_++ > 0) text_ += ',';
  const bool quote = text.find_first_of(",\"\r\n") != std::string_view::npos ||
                     (!text.empty() && (text.front() == ' ' || text.back() == ' '));
  if (!quote) {
    text_ += text;
    return *this;
  }
  text_ += '"';
  for (const char c : text) {
    if (c == '"') text_ += '"';
    text_ += c;
  }
  text_ += '"';
  return *this;
}

CsvRow& CsvRow::add(int64_t value) {
  std::array<char, 24> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return add(std::string_view(buffer.data(), static_cast<size_t>(result.ptr - buffer.data())));
}

CsvRow& CsvRow::add(double value) {
  return add(std::string_view(shortest(value)));
}

void CsvRow::clear() {
  text_.clear();
  fields_ = 0;
}

CsvRow csv_header(std::span<const std::string> columns) {
  CsvRow row;
  for (const std::string& column : columns) row.add(std::string_view(column));
  return row;
}

size_t CsvTable::column(std::string_view name) const {
  const auto found = std::find(columns.begin(), columns.end(), name);
  if (found != columns.end()) return static_cast<size_t>(found - columns.begin());
  const std::string nearest = nearest_name(name, columns);
  fail(ErrorKind::data, "no column '{}'{}", name,
       nearest.empty() ? "" : fmt::format(" (nearest: '{}')", nearest));
}

CsvTable parse_csv(std::string_view text, const std::string& name) {
  std::vector<Record> records = split_records(text);
  if (records.empty() || records[0].open_quote) fail(ErrorKind::data, "{}:1: no header row", name);
  CsvTable table;
  table.columns = std::move(records[0].fields);
  std::vector<std::string> sorted = table.columns;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end())
    fail(ErrorKind::data, "{}:1: two columns are named '{}'", name, *twice);
  for (size_t i = 1; i < records.size(); ++i) {
    if (records[i].open_quote || records[i].fields.size() != table.columns.size())
      table.damaged_lines.push_back(records[i].line);
    else
      table.rows.push_back(std::move(records[i].fields));
  }
  return table;
}

CsvTable read_csv(const std::string& path) {
  return parse_csv(read_file(path), path);
}

void append_csv_row(const std::string& path,
                    std::span<const std::string> columns,
                    const CsvRow& row) {
  TL_CHECK(row.fields() == static_cast<int64_t>(columns.size()));
  const std::string header = csv_header(columns).text() + '\n';
  AppendFile file(path);
  std::string bytes;
  if (file.size() == 0) {
    bytes = header;
  } else {
    const std::string have = file.read(0, static_cast<int64_t>(header.size()));
    if (have != header)
      throw Error(
          ErrorKind::data,
          fmt::format("{}:1: the header is not that of these results: got '{}', expected '{}'",
                      path, have.substr(0, have.find('\n')), header.substr(0, header.size() - 1)))
          .with_hint("move the file away; a new one is started with the next row");
    // A crash may have cut the last row short: end it, so that this row starts on its own line.
    constexpr int64_t kTail = int64_t{1} << 20;
    const std::string tail = file.read(std::max<int64_t>(0, file.size() - kTail), kTail);
    if (tail.back() != '\n') {
      const std::string_view last = std::string_view(tail).substr(tail.rfind('\n') + 1);
      bytes = std::count(last.begin(), last.end(), '"') % 2 == 1 ? "\"\n" : "\n";
    }
  }
  bytes += row.text();
  bytes += '\n';
  file.append(bytes);
}

}  // namespace tightloop
