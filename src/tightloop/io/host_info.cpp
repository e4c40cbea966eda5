#include "tightloop/io/host_info.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sched.h>
#include <set>
#include <sstream>
#include <string_view>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <utility>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

/// The first line of a small system file, or empty.
std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '"'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

/// The value after "<key>" and a separator in a file of "key<separator>value" lines; empty if none.
std::string value_in(const std::string& path, std::string_view key, char separator) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t at = line.find(separator);
    if (at != std::string::npos && trimmed(std::string_view(line).substr(0, at)) == key)
      return trimmed(std::string_view(line).substr(at + 1));
  }
  return {};
}

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

/// A "VmRSS:   1234 kB" line, in bytes; 0 if there is none.
int64_t kilobytes_in(const std::string& path, std::string_view key) {
  return number(value_in(path, key, ':')).value_or(0) * 1024;
}

struct GroupMemory {
  std::optional<int64_t> limit;
  int64_t used = 0;
};

/// Limit and use of this process's control group; version 2, then version 1.
GroupMemory group_memory() {
  std::string group;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("0::", 0) == 0) group = line.substr(3);
  for (const std::string& folder : {"/sys/fs/cgroup" + group, std::string("/sys/fs/cgroup")})
    if (const auto limit = number(first_line(folder + "/memory.max")))
      return {limit, number(first_line(folder + "/memory.current")).value_or(0)};
  const std::string folder = "/sys/fs/cgroup/memory";
  const auto limit = number(first_line(folder + "/memory.limit_in_bytes"));
  if (limit && *limit < int64_t{1} << 60)
    return {limit, number(first_line(folder + "/memory.usage_in_bytes")).value_or(0)};
  return {};
}

std::vector<CacheInfo> read_caches() {
  std::vector<CacheInfo> caches;
  for (int index = 0; index < 16; ++index) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}", index);
    const std::string size = first_line(folder + "/size");  // "32K", "1M"
    if (size.empty()) break;
    CacheInfo cache;
    cache.level = static_cast<int>(number(first_line(folder + "/level")).value_or(0));
    cache.kind = first_line(folder + "/type");
    const int64_t unit = size.back() == 'K' ? 1024 : size.back() == 'M' ? 1024 * 1024 : 1;
    cache.bytes = number(size).value_or(0) * unit;
    // "0-3,8": ranges and single CPUs.
    int64_t shared = 0;
    std::stringstream list(first_line(folder + "/shared_cpu_list"));
    for (std::string part; std::getline(list, part, ',');) {
      const size_t dash = part.find('-');
      const int64_t begin = number(part).value_or(0);
      const int64_t end =
          dash == std::string::npos ? begin : number(part.substr(dash + 1)).value_or(begin);
      shared += end - begin + 1;
    }
    cache.shared_by_cpus = std::max<int64_t>(1, shared);
    caches.push_back(std::move(cache));
  }
  return caches;
}

std::optional<int> count_physical_cores() {
  std::set<std::pair<std::string, std::string>> cores;
  std::string package = "0";
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(std::string_view(line).substr(0, colon));
    const std::string value = trimmed(std::string_view(line).substr(colon + 1));
    if (key == "physical id") package = value;
    if (key == "core id") cores.emplace(package, value);
  }
  if (cores.empty()) return std::nullopt;
  return static_cast<int>(cores.size());
}

int count_logical_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
}

}  // namespace

HostInfo host_info() {
  HostInfo info;
  utsname names = {};
  if (::uname(&names) == 0) {
    info.hostname = names.nodename;
    info.kernel = fmt::format("{} {} {}", names.sysname, names.release, names.machine);
  }
  info.os = value_in("/etc/os-release", "PRETTY_NAME", '=');
  info.cpu_model = value_in("/proc/cpuinfo", "model name", ':');
  if (info.cpu_model.empty()) info.cpu_model = names.machine;  // aarch64 has no model name
  std::string flags = value_in("/proc/cpuinfo", "flags", ':');
  if (flags.empty()) flags = value_in("/proc/cpuinfo", "Features", ':');
  std::stringstream words(flags);
  for (std::string word; words >> word;) info.cpu_flags.push_back(word);
  std::sort(info.cpu_flags.begin(), info.cpu_flags.end());
  info.logical_cpus = count_logical_cpus();
  info.physical_cores = count_physical_cores();
  info.caches = read_caches();
  info.memory_total_bytes = kilobytes_in("/proc/meminfo", "MemTotal");
  if (const auto limit = group_memory().limit)
    info.memory_total_bytes = std::min(info.memory_total_bytes, *limit);
  info.memory_available_bytes = memory_available_bytes();
  return info;
}

int64_t memory_available_bytes() {
  int64_t available = kilobytes_in("/proc/meminfo", "MemAvailable");
  const GroupMemory group = group_memory();
  // The group's use counts file caches, which give way; what it leaves is at least this much.
  if (group.limit) available = std::min(available, std::max<int64_t>(0, *group.limit - group.used));
  return available;
}

int64_t resident_bytes() {
  return kilobytes_in("/proc/self/status", "VmRSS");
}
int64_t peak_resident_bytes() {
  return kilobytes_in("/proc/self/status", "VmHWM");
}

void reset_peak_resident() {
  std::ofstream out("/proc/self/clear_refs");
  out << "5";
}

int64_t free_disk_bytes(const std::string& path) {
  std::error_code error;
  fs::path at = fs::absolute(path, error);
  while (!fs::exists(at, error) && at.has_relative_path()) at = at.parent_path();
  struct statvfs info = {};
  if (::statvfs(at.c_str(), &info) != 0) fail_errno(errno, "read the free space of", at.string());
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

std::string home_folder() {
  if (const char* home = std::getenv("TL_HOME")) return home;
  if (const char* home = std::getenv("HOME")) return (fs::path(home) / ".cache/tightloop").string();
  return ".cache/tightloop";
}

std::string utc_timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace tightloop
