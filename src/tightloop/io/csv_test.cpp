#include "tightloop/io/csv.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <thread>

#include <gtest/gtest.h>

#include "tightloop/core/file.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

TEST(Csv, QuotesOnlyWhereNeeded) {
  CsvRow row;
  row.add("plain").add("a,b").add("say \"x\"").add("two\nlines").add(" edge").add_missing();
  row.add(int64_t{-7}).add(0.1).add(std::optional<double>()).add(std::optional<int64_t>(3));
  EXPECT_EQ(row.text(), "plain,\"a,b\",\"say \"\"x\"\"\",\"two\nlines\",\" edge\",,-7,0.1,,3");
  EXPECT_EQ(row.fields(), 10);
  row.clear();
  EXPECT_EQ(row.text(), "");
}

TEST(Csv, NumbersAreShortestRoundTrip) {
  EXPECT_EQ(shortest(0.1), "0.1");
  EXPECT_EQ(shortest(0.1f), "0.1");
  EXPECT_EQ(shortest(1e22), "1e+22");
  EXPECT_EQ(shortest(100.0), "100");
  EXPECT_EQ(shortest(-0.0), "-0");
  EXPECT_EQ(shortest(std::nan("")), "nan");
  EXPECT_EQ(shortest(-std::numeric_limits<double>::infinity()), "-inf");
  Rng rng(1, 0);
  for (int i = 0; i < 10000; ++i) {
    const double x = std::ldexp(rng.normal(), static_cast<int>(rng.below(600)) - 300);
    EXPECT_EQ(std::stod(shortest(x)), x);
  }
}

TEST(Csv, ReadsWhatItWrites) {
  const std::vector<std::string> columns = {"a", "b,c"};
  std::string text = csv_header(columns).text() + "\n";
  text += CsvRow().add("x\"\n,").add(1.5).text() + "\n";
  text += CsvRow().add_missing().add("y").text() + "\n";
  const CsvTable table = parse_csv(text, "t.csv");
  EXPECT_EQ(table.columns, columns);
  ASSERT_EQ(table.rows.size(), 2u);
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"x\"\n,", "1.5"}));
  EXPECT_EQ(table.rows[1], (std::vector<std::string>{"", "y"}));
  EXPECT_EQ(table.column("b,c"), 1u);
  expect_error(ErrorKind::data, "no column 'b,d' (nearest: 'b,c')", [&] { table.column("b,d"); });
}

TEST(Csv, AcceptsCrlfAndAMissingLastLineEnd) {
  const CsvTable table = parse_csv("a,b\r\n1,2\r\n\r\n3,\"4\"", "t.csv");
  EXPECT_EQ(table.rows, (std::vector<std::vector<std::string>>{{"1", "2"}, {"3", "4"}}));
  EXPECT_TRUE(table.damaged_lines.empty());
}

TEST(Csv, DamagedRowsAreListedNotLost) {
  const CsvTable table = parse_csv("a,b\n1,2\n3\n4,5,6\n7,\"8\n", "t.csv");
  EXPECT_EQ(table.rows.size(), 1u);
  EXPECT_EQ(table.damaged_lines, (std::vector<int64_t>{3, 4, 5}));
}

TEST(Csv, NoHeaderOrDoubledNames) {
  expect_error(ErrorKind::data, "t.csv:1: no header", [] { parse_csv("", "t.csv"); });
  expect_error(ErrorKind::data, "t.csv:1: no header", [] { parse_csv("\"a,b\n1,2\n", "t.csv"); });
  expect_error(ErrorKind::data, "two columns are named 'a'", [] { parse_csv("a,b,a\n", "t.csv"); });
}

TEST(AppendCsvRow, WritesTheHeaderOnce) {
  const TempDir dir;
  const std::vector<std::string> columns = {"step", "loss"};
  append_csv_row(dir / "r.csv", columns, CsvRow().add(1).add(2.5));
  append_csv_row(dir / "r.csv", columns, CsvRow().add(2).add(2.25));
  EXPECT_EQ(read_file(dir / "r.csv"), "step,loss\n1,2.5\n2,2.25\n");
  expect_error(ErrorKind::data, "got 'step,loss', expected 'step,loss,x'", [&] {
    append_csv_row(dir / "r.csv", std::vector<std::string>{"step", "loss", "x"},
                   CsvRow().add(1).add(1).add(1));
  });
  EXPECT_THROW(append_csv_row(dir / "r.csv", columns, CsvRow().add(1)), Error);
  EXPECT_EQ(read_file(dir / "r.csv"), "step,loss\n1,2.5\n2,2.25\n");
}

TEST(AppendCsvRow, ARowCutShortByACrashDoesNotSpoilTheNext) {
  const TempDir dir;
  const std::vector<std::string> columns = {"a", "b"};
  for (const char* torn : {"1", "1,\"half", "1,\"he said \"\"", "1,2"}) {
    std::ofstream(dir / "r.csv") << "a,b\n0,0\n" << torn;
    append_csv_row(dir / "r.csv", columns, CsvRow().add(8).add(9));
    const CsvTable table = read_csv(dir / "r.csv");
    EXPECT_EQ(table.rows.front(), (std::vector<std::string>{"0", "0"})) << torn;
    EXPECT_EQ(table.rows.back(), (std::vector<std::string>{"8", "9"})) << torn;
  }
}

TEST(AppendCsvRow, ManyWritersOneHeader) {
  const TempDir dir;
  const std::vector<std::string> columns = {"writer", "row"};
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < 25; ++i) append_csv_row(dir / "r.csv", columns, CsvRow().add(w).add(i));
    });
  for (std::thread& writer : writers) writer.join();
  const CsvTable table = read_csv(dir / "r.csv");
  EXPECT_EQ(table.rows.size(), 100u);
  EXPECT_TRUE(table.damaged_lines.empty());
}

}  // namespace
}  // namespace tightloop
