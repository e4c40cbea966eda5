#include "tightloop/train/step_values.h"

#include <cmath>

#include "tightloop/core/error.h"

namespace tightloop {

StepValues::StepValues(const SlotStore& slots, SlotId loss, SlotId grad_sum_squares)
    : slots_(slots), loss_(loss), grad_sum_squares_(grad_sum_squares) {
  if (slots.device() != Device::cuda) return;
  for (SlotId id : {loss, grad_sum_squares}) TL_CHECK(slots.view(id).bytes() <= kBytes);
  pinned_ = cuda::allocate_pinned(kInFlight * 2 * kBytes);
  start_event_ = std::make_unique<cuda::Event>();
  // While a step is in flight, its end and that of the step before it are still to be read.
  for (int64_t i = 0; i < kInFlight + 1; ++i) ends_.push_back(std::make_unique<cuda::Event>());
}

StepValues::~StepValues() {
  if (pinned_ != nullptr) cuda::release_pinned(pinned_);
}

void StepValues::begin() {
  start_ = Clock::now();
  if (pinned_ == nullptr || in_flight() > 0) return;
  start_event_->record();
  started_alone_ = ended_;
}

void StepValues::end() {
  TL_CHECK(in_flight() < kInFlight);
  if (pinned_ != nullptr) {
    int value = 0;
    for (SlotId id : {loss_, grad_sum_squares_}) {
      const TensorView slot = slots_.view(id);
      cuda::enqueue_copy_to_host(fetched(ended_, value++), slot.data, slot.bytes());
    }
    end_of(ended_).record();
  }
  ++ended_;
}

StepValues::Values StepValues::take() {
  TL_CHECK(in_flight() > 0);
  const int64_t step = taken_++;
  if (pinned_ == nullptr) {
    Values values{.loss = get_element(slots_.view(loss_), 0),
                  .grad_sum_squares = get_element(slots_.view(grad_sum_squares_), 0)};
    values.dt_ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
    return values;
  }
  end_of(step).wait();
  const cuda::Event& from = step == started_alone_ ? *start_event_ : end_of(step - 1);
  const auto value = [&](SlotId id, int which) {
    return get_element(ConstTensorView{fetched(step, which), slots_.view(id).type}, 0);
  };
  return {.loss = value(loss_, 0),
          .grad_sum_squares = value(grad_sum_squares_, 1),
          .dt_ns = std::llround(1e9 * cuda::Event::seconds(from, end_of(step)))};
}

}  // namespace tightloop
