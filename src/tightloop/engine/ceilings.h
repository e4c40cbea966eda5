#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tightloop/core/exec.h"
#include "tightloop/program/op_def.h"

namespace tightloop {

/// What this machine can do at most, measured in this process with thread_count() threads, or what
/// its CUDA device can. Every rate is the best of many short repetitions: other programs can only
/// make it smaller.
struct Ceilings {
  /// On the CPU f32 multiply-add, operands in registers; on cuda a large product of the asked
  /// dtype.
  double fma_gflops = 0.0;
  double read_gbs = 0.0;    // reading memory: bytes read
  double copy_gbs = 0.0;    // copying memory: bytes read and written
  double update_gbs = 0.0;  // x = a x + b in place: bytes read and written
  int threads = 0;
  std::string_view fma_kernel;  // "avx512", "avx2", "neon", "portable", "cuBLASLt bf16", …
  double foreign_share = 0.0;   // of all CPU time meanwhile: other processes; 0 if nobody tells
};

/// Takes about `budget_seconds` (0.4 is enough), and a moment longer to touch what it streams:
/// twice the last cache, 128 MiB at least and 1 GiB at most. Every rate is measured at least three
/// times. 1 GB is 10^9 bytes. Error{oom}.
Ceilings measure_ceilings(double budget_seconds);
/// The same of the device that Programs of this device and dtype run on: the CPU for the reference.
Ceilings measure_ceilings(double budget_seconds, Device device, DType dtype);

/// One sentence for when other processes had more than a tenth of all CPU time meanwhile, so that
/// the rates are too low and what is predicted from them is off; empty on a quiet machine.
std::string warning_of(const Ceilings& ceilings);

/// The CPU time of all processes so far, in ticks (USER_HZ): user, system and so on, and idle.
struct CpuTicks {
  int64_t busy = 0;
  int64_t idle = 0;
};
/// From the text of /proc/stat (its line "cpu"); nothing when it has no such line.
std::optional<CpuTicks> parse_cpu_ticks(std::string_view proc_stat);

/// The shortest time for this cost: max(FLOPs / FMA peak, bytes / read rate), seconds. Reading is
/// the fastest way to move bytes, so nothing that streams from memory is faster; operands that are
/// still in a cache can be.
double floor_seconds(const Cost& cost, const Ceilings& ceilings);

}  // namespace tightloop
