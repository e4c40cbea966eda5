#include <algorithm>
#include <filesystem>

#include "tightloop/train/checkpoint.h"
#include "tightloop/train/trainer_impl.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

}  // namespace

Made Made::now() {
  return {.plans = plans_made(),
          .binds = programs_bound(),
          .blocks = memory_blocks_made(),
          .captures = programs_captured(),
          .breaks = graph_breaks(),
          .allocations = cuda::allocations(),
          .syncs = cuda::synchronizations()};
}

void Made::add(const Made& from, const Made& to) {
  plans += to.plans - from.plans;
  binds += to.binds - from.binds;
  blocks += to.blocks - from.blocks;
  captures += to.captures - from.captures;
  breaks += to.breaks - from.breaks;
  allocations += to.allocations - from.allocations;
  syncs += to.syncs - from.syncs;
}

TrainResult Trainer::Impl::run(TrainObserver& observer, const std::atomic<bool>& stop) {
  if (!resume_checkpoint.empty()) expect_same_run();
  check_memory();
  observer.on_plan(plan);
  allocate();
  const Clock::time_point allocated = Clock::now();
  if (resume_checkpoint.empty()) {
    initialise();
    folder = RunFolder::create(config.run_dir, config.run);
  } else {
    restore();
    const fs::path checkpoint = fs::absolute(resume_checkpoint).lexically_normal();
    folder = RunFolder::reopen(checkpoint.parent_path().parent_path().string(), first_step,
                               !evaluation_pending);
    if (fs::exists(folder->file("steps.bin"))) history = read_steps(folder->file("steps.bin"));
    if (static_cast<int64_t>(history.size()) != first_step)
      fail(ErrorKind::data, "{} holds {} steps, the checkpoint is at step {}",
           folder->file("steps.bin"), history.size(), first_step);
    result.last_checkpoint = resume_checkpoint;
    folder->add_log(fmt::format("resumed at step {}{}", first_step,
                                changes_at_resume.empty() ? "" : "; " + changes_at_resume));
  }
  weights_ms = 1e3 * seconds_since(allocated);
  folder->write_run_json(run_json());
  observer.on_start(folder->path(), first_step);
  history.reserve(static_cast<size_t>(plan.transfer.steps));
  try {
    loop(observer, stop);
  } catch (Error& e) {
    folder->add_log(std::string("error: ") + e.what());
    if (e.kind() == ErrorKind::numeric) close("nonfinite");
    // The disk may have room again; a CUDA error leaves the device to another process, if to any.
    if (e.kind() == ErrorKind::io || e.kind() == ErrorKind::device)
      e.with_context(fmt::format(
          "training stopped at step {}; {}", result.steps_done,
          result.last_checkpoint.empty()
              ? std::string("no checkpoint was saved yet")
              : fmt::format("continue from {} with `tightloop train --resume {}`",
                            fs::path(result.last_checkpoint).filename().string(), folder->path())));
    throw;
  }
  return result;
}

bool Trainer::Impl::evaluation_due(int64_t step) const {
  const bool window = config.eval_window && config.eval_window->due(step);
  return window ||
         (config.eval_every > 0 && (step == plan.transfer.steps || due(config.eval_every, step)));
}

bool Trainer::Impl::due(int64_t every, int64_t step) const {
  return every > 0 && step % every == 0;
}

void Trainer::Impl::record_evaluation(const EvalReport& report, TrainObserver& observer) {
  const double bpb = report.record.val_bpb;
  min_val_bpb = std::min(min_val_bpb.value_or(bpb), bpb);
  folder->add_eval(report.record);
  observer.on_eval(report);
  const bool earlier = result.last_eval.has_value();
  result.last_eval = report;
  if (!config.target_threshold) return;
  const double metric = config.target_metric == "val_bpb" ? bpb : report.record.val_loss;
  if (metric <= *config.target_threshold && !time_to_target) {
    // Linear between the last two evaluations; the lab measures with more care.
    const double share =
        !earlier || previous_metric <= metric
            ? 1.0
            : (previous_metric - *config.target_threshold) / (previous_metric - metric);
    time_to_target = previous_clock + share * (report.record.clock_sec - previous_clock);
    result.reached_target = true;
  }
  previous_metric = metric;
  previous_clock = report.record.clock_sec;
}

void Trainer::Impl::loop(TrainObserver& observer, const std::atomic<bool>& stop) {
  const int64_t N = plan.transfer.steps;
  const std::optional<DataCursor> from =
      cursor.identity.empty() ? std::nullopt : std::optional<DataCursor>(cursor);
  BatchLoader loader(train_documents, plan.rows_per_step, config.max_seq_len, from);
  cursor.buffer.reserve(static_cast<size_t>(RowPacker::kMostBuffered));
  set_element(slots->host(step_slots.loss_scale), 0,
              1.0 / static_cast<double>(plan.transfer.batch));
  slots->push(step_slots.loss_scale);
  bound_at_start = programs_bound();
  startup_s = seconds_since(kProcessStart);
  result.steps_done = first_step;
  const Clock::time_point start = Clock::now();
  std::optional<StepRecord> in_flight;  // on cuda the step before the one that is enqueued
  const auto finish = [&] {
    if (!in_flight) return;
    const StepRecord record = finish_step(*in_flight);
    in_flight.reset();
    loss_ema = kLossDecay * loss_ema + (1.0 - kLossDecay) * record.loss;
    history.push_back(record);
    folder->add_step(record);
    StepReport report;
    report.record = record;
    report.steps = N;
    report.smoothed_loss = smoothed(record.step + 1);
    report.tokens_per_second =
        static_cast<double>(plan.transfer.batch) / (static_cast<double>(record.dt_ns) * 1e-9);
    report.elapsed_s = seconds_since(start);
    report.eta_s = report.elapsed_s / static_cast<double>(record.step + 1 - first_step) *
                   static_cast<double>(N - record.step - 1);
    observer.on_step(report);
    result.steps_done = record.step + 1;
  };
  for (int64_t step = first_step;; ++step) {
    const bool resumed_here = step == first_step && !resume_checkpoint.empty();
    const auto end_interrupted = [&](bool saved) {
      finish();
      if (!saved && !resumed_here) save(step, observer);
      result.interrupted = true;
      close("killed");
    };
    if (evaluation_due(step) && (!resumed_here || evaluation_pending)) {
      finish();
      evaluation_pending = true;
      const std::optional<EvalReport> report = evaluate_now(step, stop);
      if (!report) return end_interrupted(false);
      evaluation_pending = false;
      record_evaluation(*report, observer);
    }
    const bool finished = step == N || result.reached_target;
    const bool sample_here =
        finished || (step > 0 && due(config.sample_every, step) && !resumed_here);
    const bool save_here = finished || (step == 0 ? config.save_initial
                                                  : due(config.save_every, step) && !resumed_here);
    if (sample_here || save_here) finish();
    if (sample_here && config.device != Device::ref) observer.on_sample(step, "", sample_text());
    if (save_here && !resumed_here) save(step, observer);
    if (finished) {
      close("ok");
      return;
    }
    if (gemm_cache) gemm_cache->save_if_new();
    const Made before = Made::now();
    const std::optional<StepRecord> enqueued = train_step(step, loader, stop);
    if (!enqueued) return end_interrupted(save_here);
    finish();  // the step before
    in_flight = enqueued;
    if (looks_within_steps()) finish();
    if (enqueued->counted()) made_in_steps.add(before, Made::now());
  }
}

Trainer::Trainer(const TrainConfig& config, const Options& options)
    : impl_(std::make_unique<Impl>(config, options)) {}
Trainer::~Trainer() = default;

const TrainPlan& Trainer::plan() const {
  return impl_->plan;
}
const TrainPrograms& Trainer::programs() const {
  return *impl_->programs;
}

ValidationData Trainer::validation() const {
  return impl_->validation();
}

void Trainer::copy_checkpoint(const std::string& folder) {
  impl_->copy_checkpoint(folder);
}

TrainResult Trainer::run(TrainObserver& observer, const std::atomic<bool>& stop) {
  try {
    return impl_->run(observer, stop);
  } catch (const Error& error) {
    impl_->record_failure(error);
    throw;
  }
}

}  // namespace tightloop
