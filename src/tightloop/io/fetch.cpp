#include "tightloop/io/fetch.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <mutex>
#include <sstream>
#include <sys/file.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include <curl/curl.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/log.h"
#include "tightloop/core/sha256.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

constexpr double kMaxBackoffS = 30.0;
constexpr int kFinewebTrainShards = 103;

struct CurlDeleter {
  void operator()(CURL* curl) const { curl_easy_cleanup(curl); }
};
using CurlHandle = std::unique_ptr<CURL, CurlDeleter>;

CurlHandle make_curl() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  CurlHandle curl(curl_easy_init());
  if (!curl) fail(ErrorKind::internal, "libcurl could not start");
  return curl;
}

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

bool is_hex_digest(std::string_view text) {
  return text.size() == 64 &&
         lower(text).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string file_sha256(const std::string& path) {
  const MappedFile file(path);
  return sha256_hex(file.text());
}

void check_item(const FetchItem& item) {
  const bool plain = !item.name.empty() && item.name != "." && item.name != ".." &&
                     item.name.find('/') == std::string::npos &&
                     item.name.find('\0') == std::string::npos;
  if (!plain) fail(ErrorKind::usage, "{}: '{}' is no file name", item.url, item.name);
  if (!item.sha256.empty() && !is_hex_digest(item.sha256))
    fail(ErrorKind::usage, "{}: '{}' is no sha256 (64 hex digits)", item.url, item.sha256);
}

/// What one request tells: filled in by libcurl's callbacks.
struct Transfer {
  CURL* curl = nullptr;
  int fd = -1;
  const FetchItem* item = nullptr;
  const FetchOptions* options = nullptr;
  FetchProgress report;
  int64_t offset = 0;  // bytes in the part when the request began
  int64_t have = 0;    // bytes in the part now
  bool started = false;
  int write_error = 0;
  bool bad_range = false;              // 206 for another range than the one asked for
  bool too_large = false;              // more than item->bytes
  bool stopped = false;                // progress said so
  std::optional<int64_t> range_begin;  // Content-Range of the last response
  std::optional<int64_t> range_total;
  std::chrono::steady_clock::time_point last_report{};
};

/// Parses "Content-Range: bytes 5-9/10" and "bytes */10"; forgets what redirects said.
size_t on_header(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  const std::string line = lower(std::string_view(data, size * count));
  if (line.rfind("http/", 0) == 0) {
    transfer.range_begin.reset();
    transfer.range_total.reset();
  }
  constexpr std::string_view kName = "content-range:";
  if (line.rfind(kName, 0) == 0) {
    std::string value = line.substr(kName.size());
    std::erase_if(value, [](char c) { return c == ' ' || c == '\r' || c == '\n' || c == '\t'; });
    const size_t dash = value.find('-');
    const size_t slash = value.find('/');
    if (value.rfind("bytes", 0) == 0 && slash != std::string::npos) {
      if (dash != std::string::npos && dash < slash)
        transfer.range_begin = number(std::string_view(value).substr(5, dash - 5));
      transfer.range_total = number(std::string_view(value).substr(slash + 1));
    }
  }
  return size * count;
}

size_t on_data(char* data, size_t size, size_t count, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  const size_t bytes = size * count;
  if (!transfer.started) {
    transfer.started = true;
    long status = 0;
    curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &status);
    if (status == 206 && transfer.range_begin != transfer.offset) {
      transfer.bad_range = true;
      return 0;
    }
    if (status != 206 && transfer.have > 0) {  // the server ignored the range: start again
      if (::ftruncate(transfer.fd, 0) != 0) {
        transfer.write_error = errno;
        return 0;
      }
      transfer.have = 0;
    }
  }
  if (transfer.item->bytes && transfer.have + static_cast<int64_t>(bytes) > *transfer.item->bytes) {
    transfer.too_large = true;
    return 0;
  }
  for (size_t done = 0; done < bytes;) {
    const ssize_t wrote = ::write(transfer.fd, data + done, bytes - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      transfer.write_error = errno;
      return 0;
    }
    done += static_cast<size_t>(wrote);
    transfer.have += wrote;
  }
  return bytes;
}

/// Tells the caller where the transfer is; false stops it.
bool report(Transfer& transfer) {
  if (!transfer.options->progress) return true;
  transfer.report.bytes_done = transfer.have;
  if (!transfer.options->progress(transfer.report)) transfer.stopped = true;
  return !transfer.stopped;
}

int on_progress(void* context, curl_off_t total, curl_off_t, curl_off_t, curl_off_t) {
  auto& transfer = *static_cast<Transfer*>(context);
  const auto now = std::chrono::steady_clock::now();
  if (now - transfer.last_report < std::chrono::milliseconds(200)) return 0;
  transfer.last_report = now;
  if (transfer.range_total) transfer.report.bytes_total = transfer.range_total;
  if (!transfer.report.bytes_total && total > 0 && transfer.started)
    transfer.report.bytes_total = static_cast<int64_t>(total);
  return report(transfer) ? 0 : 1;
}

bool worth_retrying(CURLcode code, long status) {
  switch (code) {
    case CURLE_HTTP_RETURNED_ERROR:
      return status >= 500 || status == 408 || status == 429;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
      return true;
    default:
      return false;
  }
}

class Downloader {
 public:
  Downloader(const std::string& folder, const FetchOptions& options)
      : folder_(folder), options_(options), curl_(make_curl()) {}

  FetchOutcome fetch(const FetchItem& item, int64_t index, int64_t items) {
    const std::string path = folder_ + "/" + item.name;
    if (is_there(item, path)) return FetchOutcome::already_there;

    const std::string part = path + ".part";
    const FileDescriptor fd(::open(part.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!fd.is_open()) fail_errno(errno, "create", part);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      fail(ErrorKind::io, "{}: another process is downloading this file", part);
    struct stat info = {};
    if (::fstat(fd.get(), &info) != 0) fail_errno(errno, "stat", part);

    Transfer transfer;
    transfer.curl = curl_.get();
    transfer.fd = fd.get();
    transfer.item = &item;
    transfer.options = &options_;
    transfer.report = {index, items, item.name, 0, item.bytes};
    transfer.have = static_cast<int64_t>(info.st_size);
    const bool found_part = transfer.have > 0;
    if (item.bytes && transfer.have > *item.bytes) restart(transfer, part);
    bool resumed = found_part && transfer.have > 0;

    while (true) {
      download(transfer, part);
      const std::string complaint = check(item, transfer.have, part);
      if (complaint.empty()) break;
      // What an earlier process left may be of another version of the file: one fresh start.
      if (!resumed) {
        ::unlink(part.c_str());
        throw Error(ErrorKind::data, fmt::format("{}: {}", item.url, complaint))
            .with_hint("the file was removed; check the list, or the server has another version");
      }
      log(LogLevel::warning,
          fmt::format("{}: {}; downloading it again from the start", item.name, complaint));
      restart(transfer, part);
      resumed = false;
    }
    report(transfer);
    if (::fsync(fd.get()) != 0) fail_errno(errno, "sync", part);
    if (::rename(part.c_str(), path.c_str()) != 0) fail_errno(errno, "rename", part);
    const FileDescriptor parent(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!parent.is_open() || ::fsync(parent.get()) != 0) fail_errno(errno, "sync", folder_);
    return resumed ? FetchOutcome::resumed : FetchOutcome::downloaded;
  }

 private:
  /// Whether a finished file is what the item asks for.
  static bool is_there(const FetchItem& item, const std::string& path) {
    std::error_code error;
    if (!fs::exists(path, error)) return false;
    const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
    const std::string complaint = error ? error.message() : check(item, bytes, path);
    if (complaint.empty()) return true;
    log(LogLevel::warning, fmt::format("{}: {}; downloading it again", path, complaint));
    return false;
  }

  /// Empty when size and hash are as expected, or what is wrong.
  static std::string check(const FetchItem& item, int64_t bytes, const std::string& path) {
    if (item.bytes && bytes != *item.bytes)
      return fmt::format("got {} bytes, expected {}", bytes, *item.bytes);
    if (item.sha256.empty()) return {};
    const std::string digest = file_sha256(path);
    if (digest == lower(item.sha256)) return {};
    return fmt::format("sha256 is {}, expected {}", digest, lower(item.sha256));
  }

  static void restart(Transfer& transfer, const std::string& part) {
    if (::ftruncate(transfer.fd, 0) != 0) fail_errno(errno, "truncate", part);
    transfer.have = 0;
  }

  /// Brings the part to its full length, over as many requests as it takes.
  void download(Transfer& transfer, const std::string& part) {
    const FetchItem& item = *transfer.item;
    if (item.bytes && transfer.have == *item.bytes && transfer.have > 0) return;
    int failures = 0;
    double backoff_s = options_.first_backoff_s;
    while (true) {
      const int64_t before = transfer.have;
      long status = 0;
      const CURLcode code = request(transfer, status);
      if (code == CURLE_OK) {
        // Without a body nothing was called: an empty file, or the server left the part as it is.
        if (!transfer.started && transfer.have > 0 && status != 206) restart(transfer, part);
        return;
      }
      if (transfer.stopped)
        throw Error(ErrorKind::interrupted, fmt::format("download of {} stopped", item.name))
            .with_hint("the same command continues it");
      if (transfer.write_error != 0) fail_errno(transfer.write_error, "write", part);
      if (transfer.too_large) {
        ::unlink(part.c_str());
        fail(ErrorKind::data, "{}: the server sends more than the expected {} bytes", item.url,
             *item.bytes);
      }
      if (status == 416 && transfer.have > 0) {
        // The range starts at or after the end of the file: whole, or of another version.
        if (transfer.range_total == transfer.have) return;
        restart(transfer, part);
      } else if (transfer.bad_range) {
        restart(transfer, part);
      } else if (!worth_retrying(code, status)) {
        fail_request(item, code, status);
      }
      if (transfer.have > before) {
        failures = 0;
        backoff_s = options_.first_backoff_s;
      }
      if (++failures > options_.retries) fail_request(item, code, status);
      log(LogLevel::warning, fmt::format("{}: {}; trying again", item.url, describe(code, status)));
      wait(transfer, backoff_s);
      backoff_s = std::min(backoff_s * 2.0, kMaxBackoffS);
    }
  }

  CURLcode request(Transfer& transfer, long& status) {
    CURL* curl = curl_.get();
    curl_easy_reset(curl);
    transfer.offset = transfer.have;
    transfer.started = transfer.bad_range = false;
    transfer.range_begin.reset();
    transfer.range_total.reset();
    const std::string range = fmt::format("{}-", transfer.offset);
    if (transfer.offset > 0) curl_easy_setopt(curl, CURLOPT_RANGE, range.c_str());
    curl_easy_setopt(curl, CURLOPT_URL, transfer.item->url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, 10L);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "tightloop");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 20L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME,
                     std::max(1L, static_cast<long>(options_.stall_s)));
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L * 1024L);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    const CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    return code;
  }

  static std::string describe(CURLcode code, long status) {
    if (code == CURLE_HTTP_RETURNED_ERROR) return fmt::format("the server answers {}", status);
    return curl_easy_strerror(code);
  }

  [[noreturn]] static void fail_request(const FetchItem& item, CURLcode code, long status) {
    const bool bad_url = code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL;
    Error error(bad_url ? ErrorKind::usage : ErrorKind::io,
                fmt::format("{}: cannot download: {}", item.url, describe(code, status)));
    if (status == 401 || status == 403 || status == 404 || status == 410)
      error.with_hint("check the URL: the server does not have this file, or not for everyone");
    else
      error.with_hint("the same command continues where it stopped");
    throw error;
  }

  /// Sleeps in short pieces, so that progress can stop it.
  void wait(Transfer& transfer, double seconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end) {
      if (!report(transfer))
        throw Error(ErrorKind::interrupted,
                    fmt::format("download of {} stopped", transfer.item->name))
            .with_hint("the same command continues it");
      std::this_thread::sleep_for(std::chrono::milliseconds(
          static_cast<int64_t>(std::clamp(seconds * 1000.0, 1.0, 100.0))));
    }
  }

  const std::string& folder_;
  const FetchOptions& options_;
  CurlHandle curl_;
};

}  // namespace

std::vector<FetchOutcome> fetch_files(const std::vector<FetchItem>& items,
                                      const std::string& folder,
                                      const FetchOptions& options) {
  for (const FetchItem& item : items) check_item(item);
  make_directories(folder);
  Downloader downloader(folder, options);
  std::vector<FetchOutcome> outcomes;
  for (size_t i = 0; i < items.size(); ++i)
    outcomes.push_back(
        downloader.fetch(items[i], static_cast<int64_t>(i), static_cast<int64_t>(items.size())));
  return outcomes;
}

std::vector<FetchItem> fineweb10b_list(int train_shards) {
  if (train_shards < 1 || train_shards > kFinewebTrainShards)
    fail(ErrorKind::usage, "fineweb10B: {} training shards asked for, it has 1 to {}", train_shards,
         kFinewebTrainShards);
  const std::string base = "https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/";
  std::vector<FetchItem> items;
  const auto add = [&](const std::string& name) {
    items.push_back({base + name, name, std::nullopt, {}});
  };
  add("fineweb_val_000000.bin");
  for (int i = 1; i <= train_shards; ++i) add(fmt::format("fineweb_train_{:06d}.bin", i));
  return items;
}

std::vector<FetchItem> parse_fetch_list(std::string_view text, const std::string& name) {
  std::vector<FetchItem> items;
  std::istringstream lines{std::string(text)};
  int64_t line_number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++line_number;
    // '#' starts a comment at the start of a word: in a URL it may be part of it.
    std::istringstream words(line);
    FetchItem item;
    for (std::string word; words >> word && word[0] != '#';) {
      if (item.url.empty()) {
        item.url = word;
      } else if (is_hex_digest(word)) {
        item.sha256 = lower(word);
      } else if (const auto bytes = number(word)) {
        item.bytes = bytes;
      } else if (item.name.empty()) {
        item.name = word;
      } else {
        fail(ErrorKind::data, "{}:{}: got '{}', expected <url> [bytes] [sha256] [name]", name,
             line_number, word);
      }
    }
    if (item.url.empty()) continue;
    if (item.url.find("://") == std::string::npos)
      fail(ErrorKind::data, "{}:{}: '{}' is no URL", name, line_number, item.url);
    if (item.name.empty()) {
      const std::string path = item.url.substr(0, item.url.find_first_of("?#"));
      item.name = path.substr(path.rfind('/') + 1);
    }
    try {
      check_item(item);
    } catch (Error& error) {
      fail(ErrorKind::data, "{}:{}: {}", name, line_number, error.what());
    }
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace tightloop
