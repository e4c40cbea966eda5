#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tightloop {

/// Throws Error{io}: "<path>: cannot <action>: <system text>", with a hint for a full disk, a
/// folder that is not writable, and a missing file. `error` is an errno value.
[[noreturn]] void fail_errno(int error, std::string_view action, const std::string& path);

/// The whole file. Error{io} when it cannot be read or is no regular file; Error{data} when it is
/// larger than `max_bytes`.
std::string read_file(const std::string& path, int64_t max_bytes = int64_t{1} << 40);

/// A regular file mapped into memory, read-only. Move-only. An empty file has an empty span.
/// Another program that truncates the file while it is mapped makes reads fault: replace files by
/// renaming.
class MappedFile {
 public:
  MappedFile() = default;
  /// Error{io} when the file is missing, unreadable or no regular file.
  explicit MappedFile(std::string path);
  ~MappedFile() { reset(); }
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    swap(other);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  std::span<const uint8_t> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_)};
  }

 private:
  void reset();
  void swap(MappedFile& other) noexcept;

  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

/// An owned file descriptor. Move-only; closes on destruction.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { close(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = other.release();
    }
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void close();

 private:
  int fd_ = -1;
};

}  // namespace tightloop
