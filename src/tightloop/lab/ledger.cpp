#include "tightloop/lab/ledger.h"

#include <chrono>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include <sqlite3.h>

#include "tightloop/core/error.h"
#include "tightloop/core/options.h"
#include "tightloop/io/csv.h"
#include "tightloop/train/run_record.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr int kBusyMilliseconds = 60'000;

const std::vector<std::string> kExtensions{
    // identity
    "schema_version", "run_id", "experiment", "arm", "template", "pair_id", "block_id", "attempt",
    "detail", "rewrites", "lock_hash", "config_hash", "build_hash", "dirty_hash", "data_hash",
    "tokenizer_hash", "eval_hash", "host", "cpu", "gpu_name", "driver", "cuda", "device", "threads",
    "finished",
    // shape and budget
    "n_embd", "n_head", "head_dim", "window_pattern", "params_total", "params_scaling",
    "flops_per_token", "num_iterations", "steps_done", "tokens_total", "flops_total",
    "realized_ratio",
    // optimizer
    "warmup_steps", "final_lr_frac", "matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr",
    "weight_decay", "lr_mult", "wd_mult", "batch_mult", "transfer_rule", "b_opt_pred", "lr_factor",
    "weight_decay_scaled", "tau", "tau_eff",
    // outcome
    "steps_to_target", "tokens_to_target", "ttt_lo", "ttt_hi", "ttt_observed_frac",
    "ttt_end_horizon_sec", "ttt_linear_sec", "ttt_nanochat_sec", "ttt_process_sec",
    "train_clock_sec", "final_val_bpb", "final_val_loss", "val_floor", "final_train_loss_window",
    "loss_spikes", "nonfinite_steps", "grad_norm_max",
    // systems
    "mfu_median", "throughput_total", "dt_p10", "dt_p90", "dt_mad", "stall_frac", "first_step_ms",
    "startup_sec", "steady_step", "process_sec", "captures", "capture_ms", "autotune_ms",
    "autotune_hit_rate", "graph_breaks", "recaptures", "plan_rebuilds", "allocs_after_warmup",
    "host_syncs_per_step", "planned_mib", "peak_resident_mib", "resume_check"};

/// Columns whose values are text even when they look like numbers.
bool is_text(std::string_view column) {
  static const std::set<std::string_view> text{"timestamp",
                                               "git_commit",
                                               "experiment_name",
                                               "warmdown_shape",
                                               "target_metric_name",
                                               "status",
                                               "run_id",
                                               "experiment",
                                               "arm",
                                               "template",
                                               "pair_id",
                                               "block_id",
                                               "detail",
                                               "rewrites",
                                               "lock_hash",
                                               "config_hash",
                                               "build_hash",
                                               "dirty_hash",
                                               "data_hash",
                                               "tokenizer_hash",
                                               "eval_hash",
                                               "host",
                                               "cpu",
                                               "gpu_name",
                                               "driver",
                                               "cuda",
                                               "device",
                                               "finished",
                                               "window_pattern",
                                               "transfer_rule",
                                               "extrapolation_method",
                                               "resume_check"};
  return text.contains(column);
}

size_t index_of(std::string_view column) {
  static const std::map<std::string_view, size_t> indices = [] {
    std::map<std::string_view, size_t> all;
    for (const std::string& name : ledger_columns()) all.emplace(name, all.size());
    return all;
  }();
  const auto it = indices.find(column);
  if (it == indices.end()) fail(ErrorKind::internal, "the ledger has no column '{}'", column);
  return it->second;
}

std::string text_of(const LedgerRow::Value& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) return fmt::format("{}", *i);
  if (const auto* d = std::get_if<double>(&value)) return shortest(*d);
  if (const auto* s = std::get_if<std::string>(&value)) return *s;
  return "";
}

LedgerRow::Value value_of(std::string_view column, const std::string& text) {
  if (text.empty()) return {};
  if (is_text(column)) return text;
  try {
    if (text.find_first_not_of("-0123456789") == std::string::npos) return parse_integer(text);
    return parse_number(text);
  } catch (const Error&) {
    return text;  // nan and inf, and what another hand wrote
  }
}

std::string made_again(const std::string& database) {
  return fmt::format("remove {} and its -wal and -shm: it is made again from results.csv",
                     database);
}

/// A prepared statement that ends with its scope.
class Statement {
 public:
  Statement(sqlite3* database, const std::string& path, const std::string& sql) : path_(path) {
    check(database, sqlite3_prepare_v2(database, sql.c_str(), -1, &statement_, nullptr));
    database_ = database;
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  void bind(int i, const LedgerRow::Value& value) {
    int code = SQLITE_OK;
    if (const auto* n = std::get_if<int64_t>(&value))
      code = sqlite3_bind_int64(statement_, i, *n);
    else if (const auto* d = std::get_if<double>(&value))
      code = sqlite3_bind_double(statement_, i, *d);
    else if (const auto* s = std::get_if<std::string>(&value))
      code = sqlite3_bind_text(statement_, i, s->data(), static_cast<int>(s->size()),
                               SQLITE_TRANSIENT);
    else
      code = sqlite3_bind_null(statement_, i);
    check(database_, code);
  }
  /// Whether there is a row.
  bool step() {
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code != SQLITE_DONE) check(database_, code);
    return false;
  }
  LedgerRow::Value column(int i) const {
    switch (sqlite3_column_type(statement_, i)) {
      case SQLITE_INTEGER:
        return int64_t{sqlite3_column_int64(statement_, i)};
      case SQLITE_FLOAT:
        return sqlite3_column_double(statement_, i);
      case SQLITE_NULL:
        return {};
      default: {
        const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, i));
        const auto bytes = static_cast<size_t>(sqlite3_column_bytes(statement_, i));
        return text == nullptr ? std::string() : std::string(text, bytes);  // may hold a NUL
      }
    }
  }

 private:
  void check(sqlite3* database, int code) const {
    if (code == SQLITE_OK) return;
    const bool full = code == SQLITE_FULL || code == SQLITE_IOERR;
    // SQLITE_ERROR: the statements are fixed, so it is the table that lacks a column.
    const bool broken = code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR;
    Error error(broken ? ErrorKind::data : ErrorKind::io,
                fmt::format("{}: {}", path_, sqlite3_errmsg(database)));
    if (broken)
      error.with_hint(made_again(path_));
    else if (full)
      error.with_hint("free some disk, then continue with `tightloop lab resume`");
    throw error;
  }

  std::string path_;
  sqlite3* database_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
};

/// Both files change under the write lock of the database, which other processes wait for.
class Transaction {
 public:
  Transaction(sqlite3* database, const std::string& path) : database_(database), path_(path) {
    Statement(database_, path_, "BEGIN IMMEDIATE").step();
  }
  ~Transaction() {
    if (sqlite3_get_autocommit(database_) == 0)
      sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit() { Statement(database_, path_, "COMMIT").step(); }

 private:
  sqlite3* database_;
  std::string path_;
};

/// SQLite answers SQLITE_BUSY at once, without its busy handler, to a process that switches a new
/// database while another does: here it waits as every other statement does.
void switch_to_wal(sqlite3* database, const std::string& path) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point give_up = Clock::now() + std::chrono::milliseconds(kBusyMilliseconds);
  const char* const sql = "PRAGMA journal_mode = WAL";
  while (sqlite3_exec(database, sql, nullptr, nullptr, nullptr) == SQLITE_BUSY &&
         Clock::now() < give_up)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  Statement(database, path, sql).step();  // throws what else is wrong
}

std::string column_list() {
  std::string text;
  for (const std::string& name : ledger_columns())
    text += (text.empty() ? "" : ", ") + ("\"" + name + "\"");
  return text;
}

std::string table_sql() {
  return "results (row INTEGER PRIMARY KEY, " + column_list() + ", UNIQUE (run_id))";
}

/// What a damaged database returns depends on how it is read and changes with what is written: it
/// is refused before anything of it is used. Error{data}.
void check_sound(sqlite3* database, const std::string& path) {
  Statement check(database, path, "PRAGMA integrity_check(1)");
  if (check.step()) {
    if (const std::string found = text_of(check.column(0)); found != "ok")
      throw Error(ErrorKind::data, fmt::format("{} is damaged: {}", path, found))
          .with_hint(made_again(path));
  }
  Statement table(database, path, "SELECT sql FROM sqlite_master WHERE name = 'results'");
  if (table.step() && text_of(table.column(0)) != "CREATE TABLE " + table_sql())
    throw Error(ErrorKind::data,
                fmt::format("{}: its table is not that of ledger version {}", path, kLedgerVersion))
        .with_hint("it was made by another version: use a new lab folder (--lab-dir)");
}

}  // namespace

const std::vector<std::string>& ledger_columns() {
  static const std::vector<std::string> columns = [] {
    std::vector<std::string> all = result_columns();
    all.insert(all.end(), kExtensions.begin(), kExtensions.end());
    return all;
  }();
  return columns;
}

LedgerRow::LedgerRow() : values_(ledger_columns().size()) {
  set("schema_version", kLedgerVersion);
}

void LedgerRow::set(std::string_view column, Value value) {
  values_[index_of(column)] = std::move(value);
}

const LedgerRow::Value& LedgerRow::get(std::string_view column) const {
  return values_[index_of(column)];
}

std::string LedgerRow::text(std::string_view column) const {
  return text_of(get(column));
}

std::optional<double> LedgerRow::number(std::string_view column) const {
  const Value& value = get(column);
  if (const auto* d = std::get_if<double>(&value)) return *d;
  if (const auto* i = std::get_if<int64_t>(&value)) return static_cast<double>(*i);
  return std::nullopt;
}

std::optional<int64_t> LedgerRow::integer(std::string_view column) const {
  if (const auto* i = std::get_if<int64_t>(&get(column))) return *i;
  return std::nullopt;
}

Ledger::Ledger(const std::string& folder, Missing missing)
    : csv_path_((fs::path(folder) / "results.csv").string()),
      database_path_((fs::path(folder) / "ledger.sqlite").string()) {
  const bool none =
      missing == Missing::empty && !fs::exists(database_path_) && !fs::exists(csv_path_);
  if (sqlite3_open(none ? ":memory:" : database_path_.c_str(), &database_) != SQLITE_OK) {
    const std::string why = database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_);
    sqlite3_close(database_);
    fail(ErrorKind::io, "cannot open {}: {}", database_path_, why);
  }
  try {
    // Else a column that the table lacks would be read as its own name.
    sqlite3_db_config(database_, SQLITE_DBCONFIG_DQS_DML, 0, nullptr);
    // It has none of its own.
    sqlite3_db_config(database_, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
    sqlite3_busy_timeout(database_, kBusyMilliseconds);
    check_sound(database_, database_path_);
    switch_to_wal(database_, database_path_);
    for (const std::string& sql :
         {std::string("PRAGMA synchronous = FULL"), "CREATE TABLE IF NOT EXISTS " + table_sql()})
      Statement(database_, database_path_, sql).step();
    reconcile();
  } catch (...) {
    sqlite3_close(database_);
    throw;
  }
}

Ledger::~Ledger() {
  sqlite3_close(database_);
}

void Ledger::reconcile() {
  Transaction transaction(database_, database_path_);
  std::set<std::string> in_database, in_csv;
  Statement ids(database_, database_path_, "SELECT run_id FROM results");
  while (ids.step()) {
    if (std::string id = text_of(ids.column(0)); !id.empty()) in_database.insert(std::move(id));
  }
  if (fs::exists(csv_path_) && fs::file_size(csv_path_) > 0) {
    const CsvTable table = read_csv(csv_path_);
    if (table.columns != ledger_columns())
      throw Error(ErrorKind::data, fmt::format("{}: the columns are not those of ledger version {}",
                                               csv_path_, kLedgerVersion))
          .with_hint("it was made by another version: use a new lab folder (--lab-dir)");
    const size_t id = table.column("run_id");
    for (const std::vector<std::string>& fields : table.rows) {
      if (fields[id].empty()) continue;
      in_csv.insert(fields[id]);
      if (!in_database.insert(fields[id]).second) continue;
      LedgerRow row;
      for (size_t i = 0; i < fields.size(); ++i)
        row.set(table.columns[i], value_of(table.columns[i], fields[i]));
      insert(row);
      ++reconciled_;
    }
  }
  if (in_csv.size() < in_database.size()) {
    for (const LedgerRow& row : rows()) {
      if (row.text("run_id").empty() || !in_csv.insert(row.text("run_id")).second) continue;
      append(row);
      ++reconciled_;
    }
  }
  transaction.commit();
}

bool Ledger::has(const std::string& run_id) const {
  Statement find(database_, database_path_, "SELECT 1 FROM results WHERE run_id = ?");
  find.bind(1, run_id);
  return find.step();
}

void Ledger::append(const LedgerRow& row) const {
  CsvRow csv;
  for (const std::string& column : ledger_columns()) csv.add(std::string_view(row.text(column)));
  append_csv_row(csv_path_, ledger_columns(), csv);
}

void Ledger::insert(const LedgerRow& row) {
  std::string marks;
  for (size_t i = 0; i < ledger_columns().size(); ++i) marks += i == 0 ? "?" : ", ?";
  Statement add(database_, database_path_,
                "INSERT INTO results (" + column_list() + ") VALUES (" + marks + ")");
  for (size_t i = 0; i < ledger_columns().size(); ++i)
    add.bind(static_cast<int>(i) + 1, row.get(ledger_columns()[i]));
  add.step();
}

void Ledger::add(const LedgerRow& row) {
  const std::string id = row.text("run_id");
  Transaction transaction(database_, database_path_);
  if (id.empty() || has(id)) fail(ErrorKind::internal, "run '{}' cannot be added", id);
  append(row);
  insert(row);
  transaction.commit();
}

std::vector<LedgerRow> Ledger::rows() const {
  std::vector<LedgerRow> rows;
  Statement all(database_, database_path_,
                "SELECT " + column_list() + " FROM results ORDER BY row");
  while (all.step()) {
    LedgerRow row;
    for (size_t i = 0; i < ledger_columns().size(); ++i)
      row.set(ledger_columns()[i], all.column(static_cast<int>(i)));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace tightloop
