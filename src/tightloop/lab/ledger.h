#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

struct sqlite3;

namespace tightloop {

/// Columns of the ledger: the core columns of results.csv, then the extension columns.
/// A column whose measure does not exist on a device stays empty: on the CPU those of the GPU, of
/// graphs, of waits and of timed products.
const std::vector<std::string>& ledger_columns();
inline constexpr int64_t kLedgerVersion = 4;

/// One run of an experiment: a value for each column; what was not measured is missing, never 0.
class LedgerRow {
 public:
  using Value = std::variant<std::monostate, int64_t, double, std::string>;

  LedgerRow();
  /// Error{internal} for a column that does not exist.
  void set(std::string_view column, Value value);
  template <typename T>
  void set(std::string_view column, const std::optional<T>& value) {
    if (value) set(column, Value(*value));
  }
  const Value& get(std::string_view column) const;
  /// As text; "" when missing.
  std::string text(std::string_view column) const;
  /// Of a number; nothing when missing.
  std::optional<double> number(std::string_view column) const;
  std::optional<int64_t> integer(std::string_view column) const;

 private:
  std::vector<Value> values_;
};

/// All finished runs of a lab folder: `ledger.sqlite` (WAL) for queries, `results.csv` beside it
/// for everything else. A row is final and is written once: first appended to the CSV (locked,
/// fsynced), then inserted. Rows that a crash or a full disk left in one of the two are copied to
/// the other when the ledger is opened. Any number of processes may have it open and add rows.
/// Error{io, data}; data also for a database that fails SQLite's integrity check.
class Ledger {
 public:
  /// What a folder with neither file gets: a new ledger, or none; its rows are empty then.
  enum class Missing { make, empty };
  explicit Ledger(const std::string& folder, Missing missing = Missing::make);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  /// Error{internal} when the run_id is empty or there already.
  void add(const LedgerRow& row);
  bool has(const std::string& run_id) const;
  /// In the order in which they were added.
  std::vector<LedgerRow> rows() const;
  /// How many rows opening copied from one file to the other.
  int64_t reconciled() const { return reconciled_; }

 private:
  void reconcile();
  void insert(const LedgerRow& row);
  void append(const LedgerRow& row) const;

  std::string csv_path_;
  std::string database_path_;
  sqlite3* database_ = nullptr;
  int64_t reconciled_ = 0;
};

}  // namespace tightloop
