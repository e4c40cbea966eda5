#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tightloop {

/// CSV as RFC 4180 has it, with LF line ends and UTF-8. A field is quoted only when it must be
/// (comma, quote, line break, leading or trailing space). An empty field means "not available".

/// The shortest decimal that reads back as the same double; "nan", "inf", "-inf".
std::string shortest(double value);
/// The shortest decimal that reads back as the same float.
std::string shortest(float value);

/// Builds one row, field by field: `row.add(step).add(loss).add_missing()`.
class CsvRow {
 public:
  CsvRow& add(std::string_view text);
  CsvRow& add(const char* text) { return add(std::string_view(text)); }
  CsvRow& add(int64_t value);
  CsvRow& add(int value) { return add(int64_t{value}); }
  CsvRow& add(double value);
  template <typename T>
  CsvRow& add(const std::optional<T>& value) {
    return value ? add(*value) : add_missing();
  }
  CsvRow& add_missing() { return add(std::string_view()); }

  int64_t fields() const { return fields_; }
  /// The row without its line end.
  const std::string& text() const { return text_; }
  void clear();

 private:
  std::string text_;
  int64_t fields_ = 0;
};

/// The column names as one row.
CsvRow csv_header(std::span<const std::string> columns);

struct CsvTable {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  // each as wide as `columns`
  /// Rows of another width, such as one that a crash cut short: their line numbers, from 1.
  std::vector<int64_t> damaged_lines;

  /// Index of a column. Error{data} with the nearest name when it is missing.
  size_t column(std::string_view name) const;
};

/// Parses a table whose first row is the header. CRLF is accepted. A quoted field that never ends
/// makes its row damaged. Error{data} when there is no header, or two columns share a name.
CsvTable parse_csv(std::string_view text, const std::string& name);
/// Error{io} when the file cannot be read.
CsvTable read_csv(const std::string& path);

/// Appends a row to a shared file: one locked, fsynced write, with the header first when the file
/// is new or empty. What a crash cut short is closed, not removed. Error{data} when the file's
/// header is not `columns`, Error{internal} when the row has another width, Error{io} (nothing is
/// changed).
void append_csv_row(const std::string& path,
                    std::span<const std::string> columns,
                    const CsvRow& row);

}  // namespace tightloop
