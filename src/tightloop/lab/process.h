#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace tightloop {

struct ChildOptions {
  std::string program;
  std::vector<std::string> arguments;  // without the program's own name
  std::string log;                     // its stderr is appended here
  double silence_s = 0.0;              // killed after this long without a line on stdout
};

struct ChildResult {
  int exit_code = -1;  // when it exited
  int signal = 0;      // when a signal ended it
  bool timed_out = false;
};

/// Runs a program in a process group of its own and hands over its stdout line by line. When `stop`
/// becomes true, or `on_line` returns false, it gets one SIGTERM and is waited for. It inherits the
/// environment, with OMP_WAIT_POLICY=passive unless that or GOMP_SPINCOUNT is set: threads that
/// spin while they wait take the processor from whoever else has work. Error{io} when it cannot be
/// started.
ChildResult run_child(const ChildOptions& options,
                      const std::function<bool(std::string_view)>& on_line,
                      const std::atomic<bool>& stop);

}  // namespace tightloop
