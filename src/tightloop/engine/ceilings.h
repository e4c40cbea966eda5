#pragma once

#include <string_view>

#include "tightloop/program/op_def.h"

namespace tightloop {

/// What this machine can do at most, measured in this process with thread_count() threads. Every
/// rate is the best of many short repetitions: other programs can only make it smaller.
struct Ceilings {
  double fma_gflops = 0.0;  // f32 multiply-add, operands in registers; 2 FLOPs each
  double read_gbs = 0.0;    // reading memory: bytes read
  double copy_gbs = 0.0;    // copying memory: bytes read and written
  double update_gbs = 0.0;  // x = a x + b in place: bytes read and written
  int threads = 0;
  std::string_view fma_kernel;  // "avx512", "avx2", "neon" or "portable"
};

/// Takes about `budget_seconds` (0.4 is enough), and a moment longer to touch what it streams:
/// twice the last cache, 128 MiB at least and 1 GiB at most. Every rate is measured at least three
/// times. 1 GB is 10^9 bytes. Error{oom}.
Ceilings measure_ceilings(double budget_seconds);

/// The shortest time for this cost: max(FLOPs / FMA peak, bytes / read rate), seconds. Reading is
/// the fastest way to move bytes, so nothing that streams from memory is faster; operands that are
/// still in a cache can be.
double floor_seconds(const Cost& cost, const Ceilings& ceilings);

}  // namespace tightloop
