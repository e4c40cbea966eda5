#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tightloop {

struct CacheInfo {
  int level = 0;
  std::string kind;  // "Data", "Instruction" or "Unified"
  int64_t bytes = 0;
  int64_t shared_by_cpus = 1;
};

/// What run records and `doctor` say about this machine. Facts that the system does not tell are
/// empty or absent, never an error.
struct HostInfo {
  std::string hostname;
  std::string os;      // "Debian GNU/Linux 12 (bookworm)"
  std::string kernel;  // "Linux 6.1.0 x86_64"
  std::string cpu_model;
  int logical_cpus = 0;                // that this process may run on
  std::optional<int> physical_cores;   // of the whole machine
  std::vector<std::string> cpu_flags;  // sorted: avx2, avx512f, bf16, ...
  std::vector<CacheInfo> caches;       // of the first CPU
  int64_t memory_total_bytes = 0;      // the control group's limit when it is lower
  int64_t memory_available_bytes = 0;
};
HostInfo host_info();

/// Memory that could still be allocated, bytes: MemAvailable, or what the control group leaves.
int64_t memory_available_bytes();
/// Resident memory of this process now, and the most it ever was (VmRSS, VmHWM), bytes.
int64_t resident_bytes();
int64_t peak_resident_bytes();
/// Starts the peak again from the present value, where the kernel can (Linux clear_refs).
void reset_peak_resident();

/// Bytes that a user without privileges may still write on the file system of `path` (or of its
/// nearest parent that exists). Error{io}.
int64_t free_disk_bytes(const std::string& path);

/// Where downloaded, generated and measured things are kept: $TL_HOME, else ~/.cache/tightloop.
std::string home_folder();

/// "2026-01-31T12:34:56Z" (RFC 3339, UTC) of now.
std::string utc_timestamp();

}  // namespace tightloop
