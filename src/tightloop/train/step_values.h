#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "tightloop/engine/memory.h"

namespace tightloop {

/// What a training step leaves for its record, on its way to the host. On cuda a step is only
/// enqueued: its values are copied into page-locked memory behind it, and looked at while the next
/// step computes. Elsewhere they are in their slots when the step ends.
class StepValues {
 public:
  struct Values {
    double loss = 0.0;
    double grad_sum_squares = 0.0;
    /// On cuda from the end of the step before, or the beginning when none was in flight, to the
    /// end of this one, by events in the stream; elsewhere by the host's clock, until take().
    int64_t dt_ns = 0;
  };

  StepValues(const SlotStore& slots, SlotId loss, SlotId grad_sum_squares);
  ~StepValues();
  StepValues(const StepValues&) = delete;
  StepValues& operator=(const StepValues&) = delete;

  /// Before the first work of a step.
  void begin();
  /// After its last. At most two steps may be in flight.
  void end();
  /// Of the oldest step in flight; waits until it has ended.
  Values take();
  int in_flight() const { return static_cast<int>(ended_ - taken_); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kInFlight = 2;
  static constexpr int64_t kBytes = 8;  // of one value

  std::byte* fetched(int64_t step, int value) const {
    return pinned_ + (step % kInFlight * 2 + value) * kBytes;
  }
  cuda::Event& end_of(int64_t step) const {
    return *ends_[static_cast<size_t>(step) % ends_.size()];
  }

  const SlotStore& slots_;
  SlotId loss_, grad_sum_squares_;
  int64_t ended_ = 0, taken_ = 0;  // steps
  Clock::time_point start_;
  // On cuda.
  std::byte* pinned_ = nullptr;
  std::unique_ptr<cuda::Event> start_event_;
  int64_t started_alone_ = -1;  // the step that start_event_ began
  std::vector<std::unique_ptr<cuda::Event>> ends_;
};

}  // namespace tightloop
