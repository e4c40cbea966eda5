#include "tightloop/core/file.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

/// Opens a regular file for reading and gives its size. O_NONBLOCK so that a FIFO cannot hang us.
FileDescriptor open_regular(const std::string& path, int64_t& size) {
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) fail_errno(errno, "open", path);
  struct stat info = {};
  if (::fstat(file.get(), &info) != 0) fail_errno(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) fail_errno(EISDIR, "read", path);
  if (!S_ISREG(info.st_mode)) fail(ErrorKind::io, "{}: cannot read: not a regular file", path);
  size = static_cast<int64_t>(info.st_size);
  return file;
}

/// The nearest folder above `path` that exists.
std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  if (slash == 0) return "/";
  const std::string parent = path.substr(0, slash);
  return ::access(parent.c_str(), F_OK) == 0 ? parent : parent_of(parent);
}

}  // namespace

void fail_errno(int error, std::string_view action, const std::string& path) {
  Error out(ErrorKind::io,
            fmt::format("{}: cannot {}: {}", path, action, std::generic_category().message(error)));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      out.with_hint(fmt::format(
          "the disk is full: `df -h {}` shows what is left; free some or write to another folder",
          parent_of(path)));
      break;
    case EFBIG:
      out.with_hint("the file size limit is reached: see `ulimit -f`");
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      out.with_hint(fmt::format("no permission here: see `ls -ld {}`, or choose another folder",
                                parent_of(path)));
      break;
    case ENOENT:
    case ENOTDIR:
      out.with_hint(fmt::format("see what is there: `ls -l {}`", parent_of(path)));
      break;
    case EMFILE:
    case ENFILE:
      out.with_hint("too many open files: see `ulimit -n`");
      break;
    default:
      break;
  }
  throw out;
}

void FileDescriptor::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string read_file(const std::string& path, int64_t max_bytes) {
  int64_t size = 0;
  const FileDescriptor file = open_regular(path, size);
  if (size > max_bytes)
    fail(ErrorKind::data, "{}: file has {} bytes, expected at most {}", path, size, max_bytes);
  std::string text(static_cast<size_t>(size), '\0');
  size_t have = 0;
  while (have < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + have, text.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(errno, "read", path);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  text.resize(have);
  return text;
}

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  int64_t size = 0;
  const FileDescriptor file = open_regular(path_, size);
  if (size == 0) return;
  void* data = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) fail_errno(errno, "map", path_);
  data_ = static_cast<const uint8_t*>(data);
  size_ = size;
}

void MappedFile::reset() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  data_ = nullptr;
  size_ = 0;
}

void MappedFile::swap(MappedFile& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
}

}  // namespace tightloop
