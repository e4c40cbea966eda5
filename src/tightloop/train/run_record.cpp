#include "tightloop/train/run_record.h"

#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <random>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tightloop/core/file.h"
#include "tightloop/core/log.h"
#include "tightloop/io/csv.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kEvalColumns{"step",     "tokens", "clock_sec",  "val_bpb",
                                            "val_loss", "floor",  "process_sec"};

std::string date_today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}{:02}{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

/// All of `data` or nothing: what a full disk took of it is cut off again.
void append(const std::string& path, const void* data, size_t bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) fail_errno(errno, "open for appending", path);
  const off_t before = ::lseek(fd, 0, SEEK_END);
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int code = errno;
      if (before < 0 || ::ftruncate(fd, before) != 0)
        log(LogLevel::warning, fmt::format("{}: ends in a torn record", path));
      ::close(fd);
      fail_errno(code, "write", path);
    }
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  ::close(fd);
}

}  // namespace

std::unique_ptr<RunFolder> RunFolder::create(const std::string& dir, const std::string& name) {
  for (char c : name) {
    if (!(std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-'))
      fail(ErrorKind::usage, "--run '{}': use letters, digits, '.', '_' and '-' only", name);
  }
  std::random_device entropy;
  const std::string id = fmt::format("{:06x}", entropy() & 0xffffffu);
  const std::string path =
      (fs::path(dir) / fmt::format("{}-{}-{}", date_today(), name, id)).string();
  try {
    make_directories(path);
  } catch (Error& e) {
    e.with_context("cannot make a run folder").with_hint("choose another place with --run-dir");
    throw;
  }
  return std::unique_ptr<RunFolder>(new RunFolder(path, false));
}

std::unique_ptr<RunFolder> RunFolder::reopen(const std::string& path,
                                             int64_t step,
                                             bool evaluated) {
  std::unique_ptr<RunFolder> folder(new RunFolder(path, true));
  const std::string steps = folder->file("steps.bin");
  if (fs::exists(steps)) {
    // Steps are stored from 0 without gaps: the one at `step` and later are made again.
    std::vector<StepRecord> kept = read_steps(steps);
    std::erase_if(kept, [&](const StepRecord& r) { return r.step >= step; });
    write_file_atomically(
        steps, {reinterpret_cast<const char*>(kept.data()), kept.size() * sizeof(StepRecord)});
  }
  const std::string evals = folder->file("evals.csv");
  if (fs::exists(evals) && fs::file_size(evals) > 0) {  // a full disk leaves an empty one
    const CsvTable table = read_csv(evals);
    std::string text = csv_header(table.columns).text() + "\n";
    for (const auto& row : table.rows) {
      const int64_t of = parse_integer(row[table.column("step")]);
      if (of > step || (of == step && !evaluated)) continue;
      CsvRow csv;
      for (const std::string& field : row) csv.add(std::string_view(field));
      text += csv.text() + "\n";
    }
    write_file_atomically(evals, text);
  }
  fs::remove(folder->file("summary.json"));
  return folder;
}

RunFolder::RunFolder(std::string path, bool existing) : path_(std::move(path)) {
  if (existing && !fs::is_directory(path_))
    fail(ErrorKind::io, "run folder '{}' does not exist", path_);
  lock_ = std::make_unique<LockFile>(file(".lock"));
  make_directories(file("checkpoints"));
  recover_temporaries(file("checkpoints"));
  steps_path_ = file("steps.bin");
  log_path_ = file("log.txt");
  steps_.reserve(kWaitingSteps);
  writing_steps_.reserve(kWaitingSteps);
  writer_ = std::thread([this] { work(); });
}

RunFolder::~RunFolder() {
  {
    const std::lock_guard guard(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  writer_.join();
}

std::string RunFolder::file(std::string_view name) const {
  return (fs::path(path_) / name).string();
}

void RunFolder::write_run_json(const OrderedJson& json) const {
  write_file_atomically(file("run.json"), json.dump(1) + "\n");
}

void RunFolder::add_step(const StepRecord& record) {
  {
    const std::lock_guard guard(mutex_);
    if (error_) std::rethrow_exception(error_);
    steps_.push_back(record);
  }
  changed_.notify_all();
}

void RunFolder::add_log(std::string_view line) {
  {
    const std::lock_guard guard(mutex_);
    lines_.append(line).append("\n");
  }
  changed_.notify_all();
}

void RunFolder::add_eval(const EvalRecord& r) {
  CsvRow row;
  row.add(r.step).add(r.tokens).add(r.clock_sec).add(r.val_bpb).add(r.val_loss).add(r.floor);
  row.add(r.process_sec);
  append_csv_row(file("evals.csv"), kEvalColumns, row);
}

void RunFolder::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !steps_.empty() || !lines_.empty(); });
    if (steps_.empty() && lines_.empty()) return;  // stopping, and nothing is left
    writing_steps_.swap(steps_);
    writing_lines_.swap(lines_);
    busy_ = true;
    const bool failed = error_ != nullptr;
    lock.unlock();
    std::exception_ptr error;
    try {
      // Never behind a record that is missing.
      if (!writing_steps_.empty() && !failed)
        append(steps_path_, writing_steps_.data(), writing_steps_.size() * sizeof(StepRecord));
      if (!writing_lines_.empty()) append(log_path_, writing_lines_.data(), writing_lines_.size());
    } catch (...) {
      error = std::current_exception();
    }
    writing_steps_.clear();
    writing_lines_.clear();
    lock.lock();
    if (error && !error_) error_ = error;
    busy_ = false;
    changed_.notify_all();
  }
}

void RunFolder::flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return steps_.empty() && lines_.empty() && !busy_; });
  if (error_) std::rethrow_exception(error_);
}

void RunFolder::finish(const OrderedJson& summary) {
  flush();
  std::string csv = "step,tokens,loss,lr_mult,wd,momentum,grad_norm,dt_ns,flags,data_hash\n";
  if (fs::exists(file("steps.bin"))) {
    for (const StepRecord& r : read_steps(file("steps.bin"))) {
      CsvRow row;
      row.add(r.step).add(r.tokens).add(r.loss);
      for (float x : {r.lr_multiplier, r.weight_decay, r.momentum, r.grad_norm})
        row.add(std::string_view(shortest(x)));
      row.add(r.dt_ns).add(r.flags).add(std::string_view(fmt::format("{:016x}", r.data_hash)));
      csv += row.text() + "\n";
    }
  }
  write_file_atomically(file("steps.csv"), csv);
  write_file_atomically(file("summary.json"), summary.dump(1) + "\n");
}

std::vector<StepRecord> read_steps(const std::string& path) {
  const MappedFile mapped(path);
  std::vector<StepRecord> records(static_cast<size_t>(mapped.size()) / sizeof(StepRecord));
  if (!records.empty())
    std::memcpy(records.data(), mapped.data(), records.size() * sizeof(StepRecord));
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].step != static_cast<int64_t>(i))
      fail(ErrorKind::data, "{}: record {} is step {}, expected {}", path, i, records[i].step, i);
  }
  return records;
}

const std::vector<std::string>& result_columns() {
  static const std::vector<std::string> columns{"timestamp",
                                                "git_commit",
                                                "experiment_name",
                                                "seed",
                                                "depth",
                                                "max_seq_len",
                                                "device_batch_size",
                                                "total_batch_size",
                                                "target_param_data_ratio",
                                                "warmdown_ratio",
                                                "warmdown_shape",
                                                "target_metric_name",
                                                "target_metric_threshold",
                                                "time_to_target_sec_measured",
                                                "time_to_target_sec_extrapolated",
                                                "extrapolation_method",
                                                "tok_per_sec_median",
                                                "dt_median_ms",
                                                "wall_time_sec",
                                                "final_train_loss",
                                                "min_val_bpb",
                                                "peak_mem_mib",
                                                "status"};
  return columns;
}

}  // namespace tightloop
