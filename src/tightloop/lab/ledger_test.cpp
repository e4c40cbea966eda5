#include "tightloop/lab/ledger.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/error.h"
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

TEST_F(LedgerTest, ForeignFilesAreRefused) {
  std::ofstream(file("results.csv")) << "a,b\n1,2\n";
  EXPECT_THROW(Ledger(folder_.string()), Error);
  fs::remove(file("results.csv"));
  for (const char* name : {"ledger.sqlite-wal", "ledger.sqlite-shm"}) fs::remove(file(name));
  std::ofstream(file("ledger.sqlite")) << std::string(5000, 'x');
  EXPECT_THROW(Ledger(folder_.string()), Error);
  EXPECT_THROW(Ledger(file("missing")), Error);
}

}  // namespace
}  // namespace tightloop
