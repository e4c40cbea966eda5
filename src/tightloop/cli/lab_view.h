#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "tightloop/cli/app.h"
#include "tightloop/lab/experiment.h"

namespace tightloop::cli {

/// Progress of a lab: one rewritten line on a terminal, one line a cell in a pipe. When it ends is
/// said once a cell has finished: before, it would be a guess.
class LabView : public LabObserver {
 public:
  void on_cell(const Cell& cell, int64_t index, int64_t cells, bool resumed) override;
  void on_step(const Cell& cell, int64_t step, int64_t steps, double loss) override;
  void on_row(const Cell& cell, const LedgerRow& row) override;
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::time_point since);
  /// "  eta 1:23"; "" before a cell has finished. `cell_left`: seconds of the cell that runs.
  std::string eta(double cell_left) const;

  bool terminal_ = stderr_is_terminal();
  bool open_line_ = false;
  std::vector<double> finished_s_;
  int64_t index_ = 0, cells_ = 0;
  Clock::time_point started_{}, shown_{};
};

}  // namespace tightloop::cli
