#include "tightloop/core/file.h"

#include <fstream>
#include <sys/stat.h>
#include <utility>

#include <gtest/gtest.h>

#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

TEST(File, ReadsAndMapsWhatWasWritten) {
  const TempDir dir;
  std::string bytes("a\0b\n", 4);
  bytes += std::string(100000, 'x');
  std::ofstream(dir / "f", std::ios::binary) << bytes;
  EXPECT_EQ(read_file(dir / "f"), bytes);
  MappedFile file(dir / "f");
  EXPECT_EQ(file.text(), bytes);
  EXPECT_EQ(file.size(), 100004);
  const MappedFile moved = std::move(file);
  EXPECT_EQ(moved.text(), bytes);
  EXPECT_EQ(moved.path(), dir / "f");
}

TEST(File, EmptyFile) {
  const TempDir dir;
  std::ofstream(dir / "f").close();
  EXPECT_EQ(read_file(dir / "f"), "");
  const MappedFile file(dir / "f");
  EXPECT_EQ(file.size(), 0);
  EXPECT_TRUE(file.bytes().empty());
}

TEST(File, RefusesWhatIsNoRegularFile) {
  const TempDir dir;
  ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
  expect_error(ErrorKind::io, "not a regular file", [&] { MappedFile file(dir / "fifo"); });
  expect_error(ErrorKind::io, "not a regular file", [&] { read_file("/dev/zero"); });
  expect_error(ErrorKind::io, dir.path(), [&] { read_file(dir.path()); });
  const Error missing = error_of([&] { read_file(dir / "none"); });
  EXPECT_EQ(missing.message(), (dir / "none") + ": cannot open: No such file or directory");
  EXPECT_NE(missing.hint().find("ls -l " + dir.path()), std::string::npos);
}

TEST(File, HonoursTheSizeLimit) {
  const TempDir dir;
  std::ofstream(dir / "f") << "12345";
  EXPECT_EQ(read_file(dir / "f", 5), "12345");
  expect_error(ErrorKind::data, "has 5 bytes, expected at most 4",
               [&] { read_file(dir / "f", 4); });
}

}  // namespace
}  // namespace tightloop
