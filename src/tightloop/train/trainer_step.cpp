#include <algorithm>
#include <cmath>
#include <span>

#include "tightloop/decode/decoder.h"
#include "tightloop/optim/optimizer.h"
#include "tightloop/train/trainer_impl.h"

namespace tightloop {
double Trainer::Impl::train_clock() const {
  double counted = 0.0;
  int64_t uncounted = 0;
  std::vector<double> early;
  for (const StepRecord& r : history) {
    const double dt = static_cast<double>(r.dt_ns) * 1e-9;
    if (!r.counted()) {
      ++uncounted;
      continue;
    }
    counted += dt;
    if (early.size() < 50) early.push_back(dt);
  }
  if (early.empty()) {
    for (const StepRecord& r : history) counted += static_cast<double>(r.dt_ns) * 1e-9;
    return counted;
  }
  return counted + static_cast<double>(uncounted) * median(early);
}

void Trainer::Impl::fail_non_finite(int64_t step, Executable* micro, double loss) {
  std::string found_at =
      "not looked for; `--debug-sync` does, at the price of a wait after every op";
  if (micro != nullptr) {
    const std::optional<NonFinite> found = micro->run_checked();
    found_at = found ? found->what : "not found again when the step was repeated";
  }
  throw Error(ErrorKind::numeric, fmt::format("the loss became {} at step {}; first non-finite "
                                              "value: {}",
                                              loss, step, found_at))
      .with_hint(recovery_hint());
}

bool Trainer::Impl::looks_within_steps() const {
  return config.device != Device::cuda || cuda::debug_sync();
}

std::optional<StepRecord> Trainer::Impl::train_step(int64_t step,
                                                    BatchLoader& loader,
                                                    const std::atomic<bool>& stop) {
  step_values->begin();
  const Batch& batch = loader.next();
  const int64_t B = config.device_batch_size, T = config.max_seq_len;
  for (int64_t m = 0; m < plan.micro_steps; ++m) {
    if (stop.load(std::memory_order_relaxed)) return std::nullopt;
    const int64_t rows = std::min(B, plan.rows_per_step - m * B);
    const int32_t* from_tokens = batch.tokens.data() + m * B * T;
    const int32_t* from_targets = batch.targets.data() + m * B * T;
    int32_t* tokens = slots->host(step_slots.tokens).as<int32_t>();
    int32_t* targets = slots->host(step_slots.targets).as<int32_t>();
    std::copy(from_tokens, from_tokens + rows * T, tokens);
    std::copy(from_targets, from_targets + rows * T, targets);
    // A partial last micro-batch is a full one whose surplus targets are ignored.
    std::fill(tokens + rows * T, tokens + B * T, 0);
    std::fill(targets + rows * T, targets + B * T, -1);
    slots->push(step_slots.tokens);
    slots->push(step_slots.targets);
    Executable& micro = m == 0 ? *first : *next;
    micro.run();
    if (!looks_within_steps()) continue;
    const double so_far = get_element(slots->pull(step_slots.loss), 0);
    if (!std::isfinite(so_far)) fail_non_finite(step, &micro, so_far);
  }
  write_hypers(plan.groups, *schedule, step, [this](size_t group, std::span<const double> values) {
    const TensorView slot = slots->host(step_slots.hypers[group]);
    for (size_t i = 0; i < values.size(); ++i)
      set_element(slot, static_cast<int64_t>(i), values[i]);
    slots->push(step_slots.hypers[group]);
  });
  optimizer->run();
  step_values->end();
  cursor = batch.cursor;

  StepRecord record;
  record.step = step;
  record.tokens = (step + 1) * plan.transfer.batch;
  record.lr_multiplier = static_cast<float>(schedule->lr_multiplier(step));
  record.weight_decay =
      static_cast<float>(plan.transfer.weight_decay * schedule->weight_decay_multiplier(step));
  record.momentum = static_cast<float>(schedule->muon_momentum(step));
  record.flags = process_steps < kUncountedSteps ? 1 : 0;
  record.data_hash = batch.hash;
  ++process_steps;
  return record;
}

StepRecord Trainer::Impl::finish_step(const StepRecord& enqueued) {
  const StepValues::Values values = step_values->take();
  if (!std::isfinite(values.loss)) fail_non_finite(enqueued.step, nullptr, values.loss);
  StepRecord record = enqueued;
  record.loss = values.loss;
  record.grad_norm = static_cast<float>(std::sqrt(values.grad_sum_squares));
  record.dt_ns = values.dt_ns;
  return record;
}

std::optional<EvalReport> Trainer::Impl::evaluate_now(int64_t step, const std::atomic<bool>& stop) {
  const std::optional<Evaluation> done = evaluate(*evaluation, *slots, val_documents,
                                                  plan.eval_batches, byte_lengths, val_batch, stop);
  if (!done) return std::nullopt;
  EvalReport report;
  report.evaluation = *done;
  report.steps = plan.transfer.steps;
  report.record = {.step = step,
                   .tokens = step * plan.transfer.batch,
                   .clock_sec = train_clock(),
                   .val_bpb = report.evaluation.bits_per_byte(),
                   .val_loss = report.evaluation.loss(),
                   .floor = report.evaluation.has_floor
                                ? std::optional<double>(report.evaluation.floor())
                                : std::nullopt,
                   .process_sec = process_seconds()};
  return report;
}

std::string Trainer::Impl::sample_text() {
  const int64_t positions = std::max<int64_t>(2, std::min<int64_t>(config.max_seq_len, 192));
  const bool here = config.device == Device::cpu;  // weights that the decoder can read in place
  Decoder decoder(plan.model, DType::f32, positions, here ? slots.get() : nullptr);
  if (!here) {
    for (const NanochatParameter& p : programs->parameters)
      decoder.set_parameter(p.name, slots->pull(p.name));
  }
  const std::vector<int32_t> prompt{train_documents.bos};
  std::string text;
  std::optional<int32_t> previous;
  generate(decoder, prompt,
           {.max_tokens = positions - 1, .sampling = {.temperature = 0.7, .seed = 1}},
           train_documents.bos, [&](int32_t token) {
             tokenizer->decode_next(previous, token, text);
             previous = token;
             return true;
           });
  return text;
}

}  // namespace tightloop
