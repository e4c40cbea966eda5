#include "tightloop/io/atomic_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Runs `body` in a child process whose exit status is 0 when `body` returned true.
template <typename Body>
bool in_child(Body&& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    bool good = false;
    try {
      good = body();
    } catch (const std::exception& error) {
      fprintf(stderr, "in child: %s\n", error.what());
    }
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// Mounts a file system of its own at `folder`, seen by this process only; false when not
/// permitted.
bool mount_tmpfs(const std::string& folder, unsigned long flags, const char* options) {
  return ::unshare(CLONE_NEWNS) == 0 &&
         ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", folder.c_str(), "tmpfs", flags, options) == 0;
}

bool may_mount() {
  const TempDir dir;
  return in_child([&] { return mount_tmpfs(dir.path(), 0, "size=64k"); });
}

/// Limits the size of files for the life of the object; EFBIG stands in for a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_ = {};
};

TEST(AtomicFile, ReplacesTheFileAndLeavesNoTemporary) {
  const TempDir dir;
  write_file_atomically(dir / "f", "first");
  write_file_atomically(dir / "f", "second");
  EXPECT_EQ(read_file(dir / "f"), "second");
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});
}

TEST(AtomicFile, WriteAtPatchesAHeader) {
  const TempDir dir;
  AtomicFile file(dir / "f");
  file.write("....body", 8);
  file.write_at(0, "head", 4);
  EXPECT_FALSE(fs::exists(dir / "f"));
  file.commit();
  EXPECT_EQ(read_file(dir / "f"), "headbody");
}

TEST(AtomicFile, WithoutCommitTheOldFileStays) {
  const TempDir dir;
  write_file_atomically(dir / "f", "old");
  {
    AtomicFile file(dir / "f");
    file.write("new", 3);
  }
  EXPECT_EQ(read_file(dir / "f"), "old");
  EXPECT_EQ(names_in(dir.path()).size(), 1u);
}

TEST(AtomicFile, FailedWriteKeepsTheOldFile) {
  const TempDir dir;
  write_file_atomically(dir / "f", "old");
  {
    const FileSizeLimit limit(4096);
    const Error error =
        error_of([&] { write_file_atomically(dir / "f", std::string(100000, 'x')); });
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_EQ(error.message(), (dir / "f") + ": cannot write: File too large");
    EXPECT_FALSE(error.hint().empty());
  }
  EXPECT_EQ(read_file(dir / "f"), "old");
  EXPECT_EQ(names_in(dir.path()).size(), 1u);
}

TEST(AtomicFile, FullDiskIsNamedAndLosesNothing) {
  if (!may_mount()) GTEST_SKIP() << "mounting a small file system is not permitted here";
  const TempDir dir;
  EXPECT_TRUE(in_child([&] {
    if (!mount_tmpfs(dir.path(), 0, "size=256k")) return false;
    write_file_atomically(dir / "f", "old");
    const Error error =
        error_of([&] { write_file_atomically(dir / "f", std::string(1 << 20, 'x')); });
    const Error in_directory = error_of([&] {
      PendingDirectory pending(dir / "step");
      write_file_atomically(pending.path() + "/big", std::string(1 << 20, 'x'));
      pending.publish();
    });
    EXPECT_EQ(error.message(), (dir / "f") + ": cannot write: No space left on device");
    EXPECT_NE(error.hint().find("disk is full"), std::string::npos);
    EXPECT_EQ(in_directory.kind(), ErrorKind::io);
    EXPECT_EQ(read_file(dir / "f"), "old");
    EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"f"});
    AppendFile log(dir / "log");
    log.append("row 1\n");
    EXPECT_EQ(error_of([&] { log.append(std::string(1 << 20, 'y')); }).kind(), ErrorKind::io);
    EXPECT_EQ(read_file(dir / "log"), "row 1\n");
    log.append("row 2\n");
    EXPECT_EQ(read_file(dir / "log"), "row 1\nrow 2\n");
    return !testing::Test::HasFailure();
  }));
}

TEST(AtomicFile, FolderThatIsNotWritable) {
  if (!may_mount()) GTEST_SKIP() << "mounting a read-only file system is not permitted here";
  const TempDir dir;
  EXPECT_TRUE(in_child([&] {
    if (!mount_tmpfs(dir.path(), MS_RDONLY, "size=64k")) return false;
    const Error error = error_of([&] { write_file_atomically(dir / "f", "x"); });
    EXPECT_EQ(error.message(), (dir / "f") + ": cannot create: Read-only file system");
    EXPECT_NE(error.hint().find("no permission"), std::string::npos);
    EXPECT_EQ(error_of([&] { PendingDirectory pending(dir / "d"); }).kind(), ErrorKind::io);
    EXPECT_EQ(error_of([&] { LockFile lock(dir / "lock"); }).kind(), ErrorKind::io);
    EXPECT_EQ(error_of([&] { AppendFile file(dir / "log"); }).kind(), ErrorKind::io);
    return !testing::Test::HasFailure();
  }));
}

TEST(AtomicFile, FolderWithoutPermission) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const TempDir dir;
  ASSERT_EQ(::chmod(dir.path().c_str(), 0500), 0);
  const Error error = error_of([&] { write_file_atomically(dir / "f", "x"); });
  EXPECT_EQ(error.message(), (dir / "f") + ": cannot create: Permission denied");
  ASSERT_EQ(::chmod(dir.path().c_str(), 0700), 0);
}

TEST(AtomicFile, MissingFolderAndDevices) {
  const TempDir dir;
  expect_error(ErrorKind::io, "cannot create: No such file or directory",
               [&] { write_file_atomically(dir / "none/f", "x"); });
  expect_error(ErrorKind::io, "/dev/null: cannot replace: not a regular file",
               [&] { write_file_atomically("/dev/null", "x"); });
}

TEST(AppendFile, FailedAppendIsUndone) {
  const TempDir dir;
  AppendFile file(dir / "f");
  file.append("row 1\n");
  {
    const FileSizeLimit limit(4096);
    EXPECT_EQ(error_of([&] { file.append(std::string(100000, 'x')); }).kind(), ErrorKind::io);
  }
  EXPECT_EQ(read_file(dir / "f"), "row 1\n");
  file.append("row 2\n");
  EXPECT_EQ(read_file(dir / "f"), "row 1\nrow 2\n");
  EXPECT_EQ(file.read(6, 100), "row 2\n");
}

TEST(AppendFile, WritersTakeTurns) {
  const TempDir dir;
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < 20; ++i)
        AppendFile(dir / "f").append(std::string(5000, static_cast<char>('a' + w)) + "\n");
    });
  for (std::thread& writer : writers) writer.join();
  const std::string text = read_file(dir / "f");
  ASSERT_EQ(text.size(), 4u * 20u * 5001u);
  for (size_t i = 0; i < text.size(); i += 5001)
    EXPECT_EQ(text.substr(i, 5001), std::string(5000, text[i]) + "\n");
}

TEST(LockFile, SecondHolderIsToldWhoHasIt) {
  const TempDir dir;
  const LockFile lock(dir / "lock");
  EXPECT_EQ(lock_holder(dir / "none"), std::nullopt);
  EXPECT_EQ(lock_holder(dir / "lock").value_or("").find(fmt::format("pid {} on ", ::getpid())), 0u);
  const Error error = error_of([&] { LockFile second(dir / "lock"); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_NE(error.message().find(fmt::format("{} is in use by pid {} on ", dir.path(), ::getpid())),
            std::string::npos)
      << error.what();
}

TEST(LockFile, KilledHolderReleases) {
  const TempDir dir;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    const LockFile lock(dir / "lock");
    if (::write(ready[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  expect_error(ErrorKind::io, fmt::format("pid {}", pid), [&] { LockFile lock(dir / "lock"); });
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_EQ(lock_holder(dir / "lock"), std::nullopt);
  EXPECT_NO_THROW(LockFile lock(dir / "lock"));
  ::close(ready[0]);
  ::close(ready[1]);
}

void write_checkpoint(const std::string& path, const std::string& content) {
  PendingDirectory pending(path);
  write_file_atomically(pending.path() + "/weights", content);
  make_directories(pending.path() + "/state");
  write_file_atomically(pending.path() + "/state/adam", content + content);
  pending.publish();
}

TEST(PendingDirectory, AppearsWholeWithAMarkerOfItsFiles) {
  const TempDir dir;
  write_checkpoint(dir / "runs/step-1/", "abc");
  EXPECT_EQ(names_in(dir / "runs"), std::vector<std::string>{"step-1"});
  EXPECT_EQ(read_file(dir / "runs/step-1/COMPLETE"), "6 state/adam\n3 weights\n");
  EXPECT_TRUE(is_complete_directory(dir / "runs/step-1"));
}

TEST(PendingDirectory, ReplacesAnOlderOneOfTheSameName) {
  const TempDir dir;
  write_checkpoint(dir / "step-1", "old");
  write_checkpoint(dir / "step-1", "newer");
  EXPECT_EQ(read_file(dir / "step-1/weights"), "newer");
  EXPECT_EQ(names_in(dir.path()).size(), 1u);
}

TEST(PendingDirectory, AbandonedOneIsRemoved) {
  const TempDir dir;
  {
    const PendingDirectory pending(dir / "step-1");
    write_file_atomically(pending.path() + "/weights", "abc");
    EXPECT_FALSE(fs::exists(dir / "step-1"));
    // Its writer lives: recovery leaves it alone.
    EXPECT_TRUE(recover_temporaries(dir.path()).empty());
    EXPECT_TRUE(fs::exists(pending.path()));
  }
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(CompleteDirectory, DamageIsNamed) {
  const TempDir dir;
  write_checkpoint(dir / "step", "abc");
  std::ofstream(dir / "step/weights") << "ab";
  EXPECT_FALSE(is_complete_directory(dir / "step"));
  expect_error(ErrorKind::data, "step/weights: has 2 bytes, expected 3",
               [&] { check_complete_directory(dir / "step"); });
  fs::remove(dir / "step/weights");
  expect_error(ErrorKind::data, "step/weights: missing, expected 3 bytes",
               [&] { check_complete_directory(dir / "step"); });
  std::ofstream(dir / "step/COMPLETE") << "nonsense\n";
  expect_error(ErrorKind::data, "COMPLETE:1: got 'nonsense'",
               [&] { check_complete_directory(dir / "step"); });
  fs::remove(dir / "step/COMPLETE");
  expect_error(ErrorKind::data, "never finished", [&] { check_complete_directory(dir / "step"); });
  expect_error(ErrorKind::io, "No such file", [&] { check_complete_directory(dir / "none"); });
}

TEST(RecoverTemporaries, RemovesDebrisAndFinishesWhatWasComplete) {
  const TempDir dir;
  // As a killed process leaves them: an unfinished file, an unfinished and a finished directory.
  std::ofstream(dir / "results.csv.tmp-77-0") << "half";
  make_directories(dir / "step-2.tmp-77-1/state");
  write_checkpoint(dir / "step-3", "abc");
  fs::rename(dir / "step-3", dir / "step-3.tmp-77-2");
  write_checkpoint(dir / "step-4", "abc");
  write_checkpoint(dir / "other", "stale");
  fs::rename(dir / "other", dir / "step-4.tmp-77-3");
  std::ofstream(dir / "notes.tmp-a") << "not ours";
  const std::vector<std::string> removed = recover_temporaries(dir.path());
  EXPECT_EQ(removed, (std::vector<std::string>{"results.csv.tmp-77-0", "step-2.tmp-77-1",
                                               "step-4.tmp-77-3"}));
  EXPECT_EQ(names_in(dir.path()), (std::vector<std::string>{"notes.tmp-a", "step-3", "step-4"}));
  EXPECT_EQ(read_file(dir / "step-4/weights"), "abc");
}

TEST(RecoverTemporaries, Names) {
  EXPECT_TRUE(is_temporary_name("a.bin.tmp-12-3"));
  for (const char* name : {"a.tmp-12", "a.tmp-x-1", "a.tmp-1-", ".tmp-1-1", "a", "a.tmp-1-1.bin"})
    EXPECT_FALSE(is_temporary_name(name)) << name;
}

// A child publishes step after step, replacing every fourth, and is killed at some moment. What it
// had reported as published must be there, whole.
TEST(PendingDirectory, KillAtAnyMomentLeavesTheLastCompleteOne) {
  for (int round = 0; round < 12; ++round) {
    const TempDir dir;
    int pipe_fds[2];
    ASSERT_EQ(::pipe(pipe_fds), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::close(pipe_fds[0]);
      for (int step = 0;; ++step) {
        const int name = step / 4;
        write_checkpoint(dir / fmt::format("step-{}", name), std::string(20000, 'a'));
        if (::write(pipe_fds[1], &name, sizeof name) != sizeof name) ::_exit(1);
      }
    }
    ::close(pipe_fds[1]);
    int published = -1;
    for (int i = 0; i <= round % 3; ++i)
      ASSERT_EQ(::read(pipe_fds[0], &published, sizeof published), ssize_t{sizeof published});
    ::usleep(static_cast<useconds_t>(round * 700));
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    while (::read(pipe_fds[0], &published, sizeof published) == ssize_t{sizeof published}) continue;
    ::close(pipe_fds[0]);

    for (const bool recovered : {false, true}) {
      if (recovered) recover_temporaries(dir.path());
      for (int step = 0; step <= published; ++step) {
        const std::string path = dir / fmt::format("step-{}", step);
        ASSERT_TRUE(is_complete_directory(path)) << path << " round " << round;
        ASSERT_EQ(read_file(path + "/weights"), std::string(20000, 'a'));
      }
    }
    for (const std::string& name : names_in(dir.path())) {
      EXPECT_FALSE(is_temporary_name(name)) << name;
      EXPECT_TRUE(is_complete_directory(dir / name)) << name;
    }
  }
}

}  // namespace
}  // namespace tightloop
