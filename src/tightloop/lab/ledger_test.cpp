#include "tightloop/lab/ledger.h"

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/csv.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

class LedgerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("tl-ledger-{}", ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static LedgerRow row(const std::string& id) {
    LedgerRow r;
    r.set("run_id", id);
    r.set("arm", "baseline, with a \"comma\"");
    r.set("seed", int64_t{3});
    r.set("final_val_loss", 0.1 + 0.2);
    r.set("status", "ok");
    r.set("git_commit", "1234567890123456789012345678901234567890");
    return r;
  }

  /// `writers` processes that each open the ledger and add `each` rows.
  void write_side_by_side(int writers, int each) const {
    std::vector<pid_t> children;
    for (int w = 0; w < writers; ++w) {
      const pid_t pid = ::fork();
      ASSERT_GE(pid, 0);
      if (pid == 0) {
        try {
          Ledger ledger(folder_.string());
          for (int i = 0; i < each; ++i) ledger.add(row(fmt::format("new{}.{}", w, i)));
          ::_exit(0);
        } catch (const Error& error) {
          std::fprintf(stderr, "writer %d: %s\n", w, error.what());
          ::_exit(1);
        }
      }
      children.push_back(pid);
    }
    for (const pid_t pid : children) {
      int status = 0;
      ASSERT_EQ(::waitpid(pid, &status, 0), pid);
      EXPECT_EQ(status, 0);
    }
  }

  std::string file(const char* name) const { return (folder_ / name).string(); }
  fs::path folder_;
};

TEST_F(LedgerTest, RowsComeBackAsTheyWere) {
  {
    Ledger ledger(folder_.string());
    ledger.add(row("a"));
    ledger.add(row("b"));
    EXPECT_THROW(ledger.add(row("a")), Error);
    EXPECT_THROW(ledger.add(LedgerRow()), Error);
  }
  const Ledger again(folder_.string());
  EXPECT_EQ(again.reconciled(), 0);
  const std::vector<LedgerRow> rows = again.rows();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].text("run_id"), "b");
  EXPECT_EQ(rows[0].text("arm"), "baseline, with a \"comma\"");
  EXPECT_EQ(rows[0].integer("seed"), 3);
  EXPECT_EQ(rows[0].number("final_val_loss"), 0.1 + 0.2);
  EXPECT_EQ(rows[0].number("time_to_target_sec_measured"), std::nullopt);
  EXPECT_EQ(rows[0].text("time_to_target_sec_measured"), "");
  const CsvTable csv = read_csv(file("results.csv"));
  EXPECT_EQ(csv.columns, ledger_columns());
  EXPECT_EQ(csv.rows.size(), 2u);
}

TEST_F(LedgerTest, EachFileIsMadeAgainFromTheOther) {
  Ledger(folder_.string()).add(row("a"));
  for (const char* name : {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"})
    fs::remove(file(name));
  {
    const Ledger ledger(folder_.string());
    EXPECT_EQ(ledger.reconciled(), 1);
    ASSERT_EQ(ledger.rows().size(), 1u);
    // Numbers stay numbers, and digits that are a name stay text.
    EXPECT_EQ(ledger.rows()[0].number("final_val_loss"), 0.1 + 0.2);
    EXPECT_EQ(ledger.rows()[0].integer("seed"), 3);
    EXPECT_EQ(ledger.rows()[0].text("git_commit"), "1234567890123456789012345678901234567890");
  }
  fs::remove(file("results.csv"));
  const Ledger ledger(folder_.string());
  EXPECT_EQ(ledger.reconciled(), 1);
  EXPECT_EQ(read_csv(file("results.csv")).rows.size(), 1u);
}

TEST_F(LedgerTest, ARowThatACrashCutShortIsMadeAgain) {
  {
    Ledger ledger(folder_.string());
    ledger.add(row("a"));
    ledger.add(row("b"));
  }
  fs::resize_file(file("results.csv"), fs::file_size(file("results.csv")) - 20);
  const Ledger ledger(folder_.string());
  EXPECT_EQ(ledger.reconciled(), 1);
  const CsvTable csv = read_csv(file("results.csv"));
  EXPECT_EQ(csv.damaged_lines.size(), 1u);
  ASSERT_EQ(csv.rows.size(), 2u);
  EXPECT_EQ(csv.rows[1][csv.column("run_id")], "b");
}

TEST_F(LedgerTest, NoWriteThatFailsLosesARow) {
  // Files may not grow beyond a limit: with each limit another write of the ledger is refused.
  constexpr int kRows = 8;
  int refused = 0, finished = 0;
  for (rlim_t limit = 0; limit <= 92'000; limit += limit < 12'000 ? 700 : 5'000) {
    SetUp();
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {  // exits with the number of rows that were added; 100: another error
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit size{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &size);
      int added = 0;
      try {
        Ledger ledger(folder_.string());
        for (; added < kRows; ++added) ledger.add(row(fmt::format("r{}", added)));
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::io) ::_exit(100);
      } catch (...) {
        ::_exit(100);
      }
      ::_exit(added);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status)) << limit;
    const int added = WEXITSTATUS(status);
    ASSERT_LE(added, kRows) << "limit " << limit << ": not an Error{io}";
    ++(added < kRows ? refused : finished);

    // With room again: what was added is there, and the rest can be.
    Ledger ledger(folder_.string());
    for (int i = 0; i < kRows; ++i) {
      const std::string id = fmt::format("r{}", i);
      if (i < added) {
        EXPECT_TRUE(ledger.has(id)) << limit << " " << id;
      }
      if (!ledger.has(id)) ledger.add(row(id));
    }
    const CsvTable csv = read_csv(file("results.csv"));
    EXPECT_TRUE(csv.damaged_lines.empty()) << limit;
    ASSERT_EQ(csv.rows.size(), static_cast<size_t>(kRows)) << limit;
    ASSERT_EQ(ledger.rows().size(), static_cast<size_t>(kRows)) << limit;
    for (int i = 0; i < kRows; ++i)
      EXPECT_EQ(csv.rows[static_cast<size_t>(i)][csv.column("run_id")], fmt::format("r{}", i));
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(finished, 0);
}

TEST_F(LedgerTest, WritersThatMakeItAtTheSameMoment) {
  constexpr int kRounds = 30, kWriters = 12;
  for (int round = 0; round < kRounds; ++round) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    write_side_by_side(kWriters, 1);
    EXPECT_EQ(Ledger(folder_.string()).rows().size(), static_cast<size_t>(kWriters)) << round;
  }
}

TEST_F(LedgerTest, WritersSideBySideOnAHundredThousandRows) {
  constexpr int kRows = 100'000, kWriters = 4, kEach = 25;
  {
    std::ofstream csv(file("results.csv"));
    for (size_t i = 0; i < ledger_columns().size(); ++i)
      csv << (i == 0 ? "" : ",") << ledger_columns()[i];
    csv << "\n";
    for (int n = 0; n < kRows; ++n) {
      for (size_t i = 0; i < ledger_columns().size(); ++i) {
        csv << (i == 0 ? "" : ",");
        if (ledger_columns()[i] == "run_id") csv << "old" << n;
        if (ledger_columns()[i] == "seed") csv << n;
        if (ledger_columns()[i] == "status") csv << "ok";
      }
      csv << "\n";
    }
  }
  write_side_by_side(kWriters, kEach);
  const CsvTable csv = read_csv(file("results.csv"));
  EXPECT_TRUE(csv.damaged_lines.empty());
  ASSERT_EQ(csv.rows.size(), static_cast<size_t>(kRows + kWriters * kEach));
  std::set<std::string> ids;
  for (const std::vector<std::string>& fields : csv.rows) ids.insert(fields[csv.column("run_id")]);
  EXPECT_EQ(ids.size(), csv.rows.size());
  const Ledger ledger(folder_.string());
  EXPECT_EQ(ledger.reconciled(), 0);
  for (const std::string& id : ids) ASSERT_TRUE(ledger.has(id)) << id;
}

TEST_F(LedgerTest, ADamagedDatabaseIsRefusedAndMadeAgain) {
  {
    Ledger ledger(folder_.string());
    ledger.add(row("first-run"));
    ledger.add(row("second-run"));
  }
  // Another run id in the index than in the table: SQLite opens that, and reads either.
  std::string bytes = read_file(file("ledger.sqlite"));
  const size_t at = bytes.rfind("second-run");
  ASSERT_NE(at, bytes.find("second-run"));
  bytes[at] = 'S';
  std::ofstream(file("ledger.sqlite"), std::ios::binary) << bytes;
  try {
    const Ledger ledger(folder_.string());
    FAIL() << "a damaged database was opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::data);
    EXPECT_NE(error.message().find(file("ledger.sqlite") + " is damaged"), std::string::npos)
        << error.what();
    EXPECT_NE(error.hint().find("made again from results.csv"), std::string::npos);
  }
  for (const char* name : {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"})
    fs::remove(file(name));
  EXPECT_EQ(Ledger(folder_.string()).rows().size(), 2u);
}

TEST_F(LedgerTest, ForeignFilesAreRefused) {
  std::ofstream(file("results.csv")) << "a,b\n1,2\n";
  EXPECT_THROW(Ledger(folder_.string()), Error);
  fs::remove(file("results.csv"));
  for (const char* name : {"ledger.sqlite-wal", "ledger.sqlite-shm"}) fs::remove(file(name));
  std::ofstream(file("ledger.sqlite")) << std::string(5000, 'x');
  EXPECT_THROW(Ledger(folder_.string()), Error);
  EXPECT_THROW(Ledger(file("missing")), Error);
}

TEST_F(LedgerTest, AFolderOfAnotherVersionIsRefused) {
  const auto refused = [this](const std::string& path) {
    try {
      const Ledger ledger(folder_.string());
      ADD_FAILURE() << path << " was opened";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::data);
      EXPECT_NE(error.message().find(path), std::string::npos) << error.message();
      EXPECT_NE(error.message().find("ledger version 4"), std::string::npos) << error.message();
      EXPECT_EQ(error.hint(), "it was made by another version: use a new lab folder (--lab-dir)");
    }
    for (const char* name :
         {"results.csv", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"})
      fs::remove(file(name));
  };
  // As version 3 had it: without a column.
  std::vector<std::string> columns = ledger_columns();
  std::erase(columns, "gpu_name");
  std::ofstream(file("results.csv")) << csv_header(columns).text() << "\n";
  refused(file("results.csv"));
  { const Ledger ledger(folder_.string()); }
  std::string bytes = read_file(file("ledger.sqlite"));
  bytes.replace(bytes.find("gpu_name"), 8, "gpu_kind");
  std::ofstream(file("ledger.sqlite"), std::ios::binary) << bytes;
  fs::remove(file("results.csv"));
  refused(file("ledger.sqlite"));
}

}  // namespace
}  // namespace tightloop
