#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/file.h"

namespace tightloop {

/// A file that appears under its name only when it is whole. Bytes go to `<path>.tmp-<pid>-<n>` in
/// the same folder; commit() syncs them, renames, and syncs the folder. Without commit() the
/// temporary is removed and whatever was at `path` stays. Memory: no buffer, write large pieces.
/// Errors: Error{io} (disk full, not writable, missing folder) naming the path.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, int64_t bytes);
  /// Overwrites bytes that are already there, such as a header whose count is now known.
  void write_at(int64_t offset, const void* data, int64_t bytes);
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  FileDescriptor file_;
  int64_t size_ = 0;
};

/// Replaces the file, or creates it, in one step: after a crash it holds the old or the new bytes.
void write_file_atomically(const std::string& path, std::string_view bytes);

/// A file open for appending, under an exclusive lock (flock; waits for other holders) until
/// destroyed. Every append is one write followed by fsync; one that fails leaves the file as it
/// was.
class AppendFile {
 public:
  /// Creates the file when it is missing.
  explicit AppendFile(std::string path);

  int64_t size() const { return size_; }
  /// Up to `bytes` bytes from `offset` on.
  std::string read(int64_t offset, int64_t bytes) const;
  void append(std::string_view bytes);

 private:
  std::string path_;
  FileDescriptor file_;
  int64_t size_ = 0;
};

/// Holds a folder for one process: an exclusive flock on the file `path` (created when missing,
/// never removed). The lock ends with the process, however it ends. Error{io} naming the pid and
/// host of the holder when another process has it.
class LockFile {
 public:
  explicit LockFile(const std::string& path);

 private:
  FileDescriptor file_;
};

/// Who holds the LockFile of `path`, as it wrote itself there: "pid 12 on host"; nothing when
/// nobody does. Makes nothing.
std::optional<std::string> lock_holder(const std::string& path);

/// The name of the marker that a complete directory holds: lines "<bytes> <relative path>".
inline constexpr std::string_view kCompleteMarker = "COMPLETE";

/// A directory that appears under its name only when it is whole: write files under path(), then
/// publish(). Without publish() the temporary `<final>.tmp-<pid>-<n>` is removed on destruction; a
/// killed process leaves it behind for recover_temporaries(). A crash at any moment leaves the
/// directories that were complete before usable.
class PendingDirectory {
 public:
  /// Creates the temporary directory, and the parents of `final_path`.
  explicit PendingDirectory(std::string final_path);
  ~PendingDirectory();
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;

  const std::string& path() const { return temporary_; }
  /// publish_directory(path(), final_path).
  void publish();

 private:
  std::string final_path_;
  std::string temporary_;
  FileDescriptor lock_;
};

/// Syncs every file below `temporary`, writes the marker, syncs the directory, renames it to
/// `final_path` and syncs the parent. A directory already at `final_path` is replaced in one step.
void publish_directory(const std::string& temporary, const std::string& final_path);

/// Whether the directory holds the marker and every file in it has the size that the marker names.
bool is_complete_directory(const std::string& path);
/// Error{data} saying which file is missing, cut short or grown, or that the marker is missing.
void check_complete_directory(const std::string& path);

/// Temporaries in `folder` whose writer is gone: a directory that was complete but not yet renamed
/// is renamed now when its final name is free; everything else is removed. Returns the names
/// removed. Call it under the folder's LockFile.
std::vector<std::string> recover_temporaries(const std::string& folder);

/// Whether a file name is one that AtomicFile and PendingDirectory use for unfinished work.
bool is_temporary_name(std::string_view name);

/// Creates the directory and its parents; fine when it exists. Error{io}.
void make_directories(const std::string& path);
/// Removes a file or a whole directory tree; fine when it is missing. Error{io}.
void remove_tree(const std::string& path);

}  // namespace tightloop
