#include "tightloop/io/atomic_file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "tightloop/core/error.h"
#include "tightloop/core/log.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporaryTag = ".tmp-";

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string temporary_name(const std::string& path) {
  static std::atomic<int64_t> counter{0};
  return fmt::format("{}{}{}-{}", path, kTemporaryTag, ::getpid(), counter++);
}

/// Removes trailing slashes, so that a temporary name becomes a sibling and not a child.
std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void write_all(int fd, const void* data, int64_t bytes, const std::string& path) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(fd, p, static_cast<size_t>(bytes));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_errno(errno, "write", path);
    p += done;
    bytes -= done;
  }
}

/// Syncs a file or directory given by path.
void sync_path(const std::string& path, int flags) {
  const FileDescriptor fd(::open(path.c_str(), flags | O_RDONLY | O_CLOEXEC));
  if (!fd.is_open()) fail_errno(errno, "open", path);
  // EINVAL: the file system has nothing to sync for this kind of file.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) fail_errno(errno, "sync", path);
}

void sync_directory(const std::string& path) {
  sync_path(path, O_DIRECTORY);
}

/// Calls visit(entry) for everything in the tree below `path`, in sorted order, folders after what
/// they contain.
template <typename Visit>
void walk(const std::string& path, const Visit& visit) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    entries.push_back(*it);
  if (error) fail_errno(error.value(), "list", path);
  std::sort(entries.begin(), entries.end());
  for (const fs::directory_entry& entry : entries) {
    if (entry.is_directory(error) && !entry.is_symlink(error)) walk(entry.path().string(), visit);
    visit(entry);
  }
}

/// Takes an exclusive flock without waiting; false when another holder has it.
bool try_lock(int fd, const std::string& path) {
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) fail_errno(errno, "lock", path);
  }
  return true;
}

/// What the holder of a lock wrote into its file.
std::string holder_in(int fd) {
  char text[256] = {};
  const ssize_t got = ::pread(fd, text, sizeof text - 1, 0);
  std::string holder(text, got > 0 ? static_cast<size_t>(got) : 0);
  while (!holder.empty() && (holder.back() == '\n' || holder.back() == ' ')) holder.pop_back();
  for (char& c : holder)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return holder.empty() ? "another process" : holder;
}

std::string marker_path(const std::string& directory) {
  return directory + "/" + std::string(kCompleteMarker);
}

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

/// Swaps two names in one step where the file system can; false where it cannot.
bool exchange_names(const std::string& a, const std::string& b) {
#ifdef SYS_renameat2
  constexpr unsigned kRenameExchange = 2;
  return ::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), kRenameExchange) == 0;
#else
  static_cast<void>(a);
  static_cast<void>(b);
  return false;
#endif
}

/// Gives `temporary` the name `final_path` and syncs the parent.
void rename_directory(const std::string& temporary, const std::string& final_path) {
  if (!exists(final_path)) {
    if (::rename(temporary.c_str(), final_path.c_str()) != 0)
      fail_errno(errno, "rename to its final name", temporary);
    sync_directory(parent_of(final_path));
    return;
  }
  if (exchange_names(temporary, final_path)) {
    sync_directory(parent_of(final_path));
    remove_tree(temporary);
    return;
  }
  // Without an exchange the old directory steps aside under a temporary name; a crash before the
  // second rename leaves two complete temporaries, and recover_temporaries() publishes one again.
  const std::string aside = temporary_name(final_path);
  if (::rename(final_path.c_str(), aside.c_str()) != 0) fail_errno(errno, "move aside", final_path);
  if (::rename(temporary.c_str(), final_path.c_str()) != 0)
    fail_errno(errno, "rename to its final name", temporary);
  sync_directory(parent_of(final_path));
  remove_tree(aside);
}

}  // namespace

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(temporary_name(path_)) {
  struct stat info = {};
  if (::stat(path_.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    fail(ErrorKind::io, "{}: cannot replace: not a regular file", path_);
  file_ = FileDescriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file_.is_open()) fail_errno(errno, "create", path_);
  // Tells recover_temporaries() that this is work in progress; a file system without locks loses
  // only that.
  static_cast<void>(::flock(file_.get(), LOCK_EX | LOCK_NB));
}

AtomicFile::~AtomicFile() {
  if (file_.is_open()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, int64_t bytes) {
  write_all(file_.get(), data, bytes, path_);
  size_ += bytes;
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
  TL_CHECK(offset >= 0 && bytes >= 0 && offset + bytes <= size_);
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(file_.get(), p, static_cast<size_t>(bytes), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_errno(errno, "write", path_);
    p += done;
    offset += done;
    bytes -= done;
  }
}

void AtomicFile::commit() {
  TL_CHECK(file_.is_open());
  if (::fsync(file_.get()) != 0) fail_errno(errno, "sync", path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail_errno(errno, "rename the finished file to", path_);
  file_.close();
  sync_directory(parent_of(path_));
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes.data(), static_cast<int64_t>(bytes.size()));
  file.commit();
}

AppendFile::AppendFile(std::string path) : path_(std::move(path)) {
  const bool is_new = !exists(path_);
  file_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file_.is_open()) fail_errno(errno, "open for appending", path_);
  while (::flock(file_.get(), LOCK_EX) != 0)
    if (errno != EINTR) fail_errno(errno, "lock", path_);
  struct stat info = {};
  if (::fstat(file_.get(), &info) != 0) fail_errno(errno, "stat", path_);
  size_ = static_cast<int64_t>(info.st_size);
  if (is_new) sync_directory(parent_of(path_));
}

std::string AppendFile::read(int64_t offset, int64_t bytes) const {
  bytes = std::min(bytes, size_ - offset);
  if (offset < 0 || bytes <= 0) return {};
  std::string out(static_cast<size_t>(bytes), '\0');
  size_t have = 0;
  while (have < out.size()) {
    const ssize_t got = ::pread(file_.get(), out.data() + have, out.size() - have,
                                static_cast<off_t>(offset) + static_cast<off_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(errno, "read", path_);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  out.resize(have);
  return out;
}

void AppendFile::append(std::string_view bytes) {
  try {
    write_all(file_.get(), bytes.data(), static_cast<int64_t>(bytes.size()), path_);
    if (::fsync(file_.get()) != 0 && errno != EINVAL) fail_errno(errno, "sync", path_);
  } catch (Error&) {
    if (::ftruncate(file_.get(), size_) != 0)
      log(LogLevel::warning, fmt::format("{}: could not undo a partial append", path_));
    throw;
  }
  size_ += static_cast<int64_t>(bytes.size());
}

std::optional<std::string> lock_holder(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open() || try_lock(file.get(), path)) return std::nullopt;
  return holder_in(file.get());
}

LockFile::LockFile(const std::string& path)
    : file_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (!file_.is_open()) fail_errno(errno, "open the lock", path);
  if (!try_lock(file_.get(), path)) {
    throw Error(ErrorKind::io,
                fmt::format("{} is in use by {}", parent_of(path), holder_in(file_.get())))
        .with_hint("wait for that process to end, or choose another folder");
  }
  // Advisory text for the message above; the lock itself holds without it, even on a full disk.
  char host[128] = "unknown host";
  ::gethostname(host, sizeof host - 1);
  const std::string text = fmt::format("pid {} on {}\n", ::getpid(), host);
  if (::ftruncate(file_.get(), 0) != 0 ||
      ::pwrite(file_.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    log(LogLevel::debug, fmt::format("{}: could not record the pid of the holder", path));
}

PendingDirectory::PendingDirectory(std::string final_path)
    : final_path_(without_trailing_slash(std::move(final_path))),
      temporary_(temporary_name(final_path_)) {
  make_directories(parent_of(final_path_));
  if (::mkdir(temporary_.c_str(), 0755) != 0) fail_errno(errno, "create", final_path_);
  lock_ = FileDescriptor(::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_.is_open()) fail_errno(errno, "open", temporary_);
  static_cast<void>(::flock(lock_.get(), LOCK_EX | LOCK_NB));  // as in AtomicFile
}

PendingDirectory::~PendingDirectory() {
  if (!lock_.is_open()) return;
  std::error_code error;
  fs::remove_all(temporary_, error);
  if (error)
    log(LogLevel::warning, fmt::format("{}: could not remove: {}", temporary_, error.message()));
}

void PendingDirectory::publish() {
  TL_CHECK(lock_.is_open());
  publish_directory(temporary_, final_path_);
  lock_.close();
}

void publish_directory(const std::string& temporary_in, const std::string& final_in) {
  const std::string temporary = without_trailing_slash(temporary_in);
  const std::string final_path = without_trailing_slash(final_in);
  std::string marker;
  walk(temporary, [&](const fs::directory_entry& entry) {
    const std::string path = entry.path().string();
    if (entry.is_directory()) {
      sync_directory(path);
      return;
    }
    sync_path(path, 0);
    const std::string relative = path.substr(temporary.size() + 1);
    if (relative != kCompleteMarker)
      marker += fmt::format("{} {}\n", static_cast<int64_t>(entry.file_size()), relative);
  });
  sync_directory(temporary);
  write_file_atomically(marker_path(temporary), marker);
  rename_directory(temporary, final_path);
}

void check_complete_directory(const std::string& path) {
  const std::string marker = marker_path(path);
  if (!exists(marker)) {
    if (!exists(path)) fail_errno(ENOENT, "open", path);
    fail(ErrorKind::data, "{}: no file {} in it: the folder was never finished", path,
         kCompleteMarker);
  }
  const std::string text = read_file(marker, int64_t{1} << 26);
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    ++line_number;
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    int64_t bytes = 0;
    const auto [rest, status] = std::from_chars(line.data(), line.data() + line.size(), bytes);
    if (status != std::errc() || rest == line.data() + line.size() || *rest != ' ')
      fail(ErrorKind::data, "{}:{}: got '{}', expected '<bytes> <file>'", marker, line_number,
           line);
    const std::string file = path + "/" + std::string(rest + 1, line.data() + line.size());
    std::error_code error;
    const auto have = fs::file_size(file, error);
    if (error) fail(ErrorKind::data, "{}: missing, expected {} bytes", file, bytes);
    if (static_cast<int64_t>(have) != bytes)
      fail(ErrorKind::data, "{}: has {} bytes, expected {}", file, have, bytes);
  }
}

bool is_complete_directory(const std::string& path) {
  try {
    check_complete_directory(path);
    return true;
  } catch (const Error&) {
    return false;
  }
}

bool is_temporary_name(std::string_view name) {
  const size_t tag = name.rfind(kTemporaryTag);
  if (tag == std::string_view::npos || tag == 0) return false;
  const std::string_view tail = name.substr(tag + kTemporaryTag.size());
  const size_t dash = tail.find('-');
  const auto digits = [](std::string_view s) {
    return !s.empty() && s.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return dash != std::string_view::npos && digits(tail.substr(0, dash)) &&
         digits(tail.substr(dash + 1));
}

std::vector<std::string> recover_temporaries(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (is_temporary_name(name)) names.push_back(std::move(name));
  }
  if (error) fail_errno(error.value(), "list", folder);
  std::sort(names.begin(), names.end());

  std::vector<std::string> removed;
  for (const std::string& name : names) {
    const std::string path = folder + "/" + name;
    const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
    if (!fd.is_open() || !try_lock(fd.get(), path)) continue;  // gone, or its writer lives
    const std::string final_path = folder + "/" + name.substr(0, name.rfind(kTemporaryTag));
    if (fs::is_directory(path, error) && is_complete_directory(path) && !exists(final_path)) {
      rename_directory(path, final_path);
      continue;
    }
    remove_tree(path);
    removed.push_back(name);
  }
  return removed;
}

void make_directories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error && !fs::is_directory(path, error))
    error = std::make_error_code(std::errc::not_a_directory);
  if (error) fail_errno(error.value(), "create the folder", path);
}

void remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_errno(error.value(), "remove", path);
}

}  // namespace tightloop
