#include <cmath>

#include <nlohmann/json.hpp>

#include "tightloop/core/build_info.h"
#include "tightloop/core/cuda_device.h"
#include "tightloop/model/nanochat_init.h"
#include "tightloop/ops/attention/attention.h"
#include "tightloop/ops/common/gemm.h"
#include "tightloop/train/checkpoint.h"
#include "tightloop/train/trainer_impl.h"

namespace tightloop {
OrderedJson Trainer::Impl::state_json(int64_t step) const {
  OrderedJson json;
  json["format"] = 1;
  json["step"] = step;
  json["total_batch_size"] = plan.transfer.batch;
  json["recipe"] = name_of(config.recipe);
  json["loss_ema"] = loss_ema;
  if (min_val_bpb) json["min_val_bpb"] = *min_val_bpb;
  if (time_to_target) json["time_to_target_sec"] = *time_to_target;
  if (evaluation_pending) json["evaluation_pending"] = true;
  json["process_sec"] = process_seconds();
  json["data"] = to_json(cursor);
  json["tokenizer"] = tokenizer->content_hash();
  json["kernels"] = kernels();
  if (config.device == Device::cuda) json["gemm_algorithms"] = used_gemm_choices();
  json["data_path"] = plan.data;
  json["options"] = resolved_options;
  return json;
}

std::string Trainer::Impl::kernels() const {
  if (config.device != Device::cuda)
    return fmt::format("{} {} {}", build_info().compiler, name_of(config.device),
                       gemm_kernel_name());
  const cuda::DeviceInfo device = cuda::device_info();
  std::string text =
      fmt::format("{} cuda {} sm_{}{} runtime {}", build_info().compiler, device.name,
                  device.compute_major, device.compute_minor, device.runtime_version);
  text += fmt::format(", cuBLASLt {}", cublaslt_version());
  if (config.generic_arch) text += ", generic kernels";
  if (config.dtype == DType::bf16) text += ", attention by " + attention_library();
  return text;
}

void Trainer::Impl::expect_same_run() {
  const Json state = load_checkpoint_state(resume_checkpoint);
  const std::string where = resume_checkpoint + "/state.json";
  const int64_t batch = get_int(state, "total_batch_size", where, plan.transfer.batch);
  if (batch != plan.transfer.batch)
    throw Error(ErrorKind::usage,
                fmt::format("the run takes steps of {} tokens, now they would be of {}", batch,
                            plan.transfer.batch))
        .with_hint(fmt::format("resume with --total-batch-size {}", batch));
  const Json& options = get_object(state, "options", where);
  for (const auto& [key, now] : resolved_options.items()) {
    if (key == "run.resume" || find_field(options, key, where) == nullptr) continue;
    const std::string before =
        get_string(get_object(options, key, where), "value", where + ": options." + key);
    const auto value = now.at("value").get<std::string>();
    if (value == before) continue;
    for (const std::string_view fixed :
         {"train.seed", "data.seed", "run.name", "run.dir", "checkpoint.initial"}) {
      if (key == fixed)
        throw Error(ErrorKind::usage, fmt::format("{} is '{}' in this run, a resume cannot make it "
                                                  "'{}'",
                                                  key, before, value))
            .with_hint("leave it out, or begin a new run without --resume");
    }
    changes_at_resume += fmt::format("{}{}: '{}', was '{}'", changes_at_resume.empty() ? "" : "; ",
                                     key, value, before);
  }
}

void Trainer::Impl::restore() {
  const Json state = load_checkpoint_state(resume_checkpoint);
  const std::string where = resume_checkpoint + "/state.json";
  first_step = get_int(state, "step", where);
  loss_ema = get_double(state, "loss_ema", where);
  if (find_field(state, "min_val_bpb", where) != nullptr)
    min_val_bpb = get_double(state, "min_val_bpb", where);
  if (find_field(state, "time_to_target_sec", where) != nullptr)
    time_to_target = get_double(state, "time_to_target_sec", where);
  evaluation_pending = get_bool(state, "evaluation_pending", where, false);
  earlier_processes_s = get_double(state, "process_sec", where, 0.0);
  cursor = data_cursor_from_json(get_object(state, "data", where));
  const std::string hash = get_string(state, "tokenizer", where);
  if (hash != tokenizer->content_hash())
    fail(ErrorKind::data, "the tokenizer of '{}' is not the one the checkpoint was trained with",
         plan.data);
  const std::string then = get_string(state, "kernels", where);
  if (then != kernels() && !config.allow_different_machine)
    throw Error(
        ErrorKind::usage,
        fmt::format("the checkpoint was made with '{}', this is '{}': the bits would differ", then,
                    kernels()))
        .with_hint("resume with --allow-different-machine");
  // The same machine, then, and the same algorithms, whatever this one's cache has come to hold.
  if (then == kernels() && find_field(state, "gemm_algorithms", where) != nullptr) {
    GemmChoices choices;
    const Json& saved = get_object(state, "gemm_algorithms", where);
    for (const auto& [product, algorithm] : saved.items())
      choices[product] = get_string(saved, product, where + ": gemm_algorithms");
    adopt_gemm_choices(choices, true);
  }
  if (first_step > plan.transfer.steps)
    fail(ErrorKind::usage, "the checkpoint is at step {}, the run has only {}", first_step,
         plan.transfer.steps);
  load_checkpoint_slots(resume_checkpoint, *slots, true);
}

void Trainer::Impl::initialise() {
  for (const NanochatParameter& p : programs->parameters) {
    init_parameter(p, static_cast<uint64_t>(config.seed), slots->host(p.name));
    slots->push(p.name);
  }
}

void Trainer::Impl::expect_finite_state(int64_t step) const {
  for (const Slot& slot : slots->table().all()) {
    if (slot.role != SlotRole::parameter && slot.role != SlotRole::optimizer) continue;
    const TensorView t = slots->pull(slot.name);
    for (int64_t i = 0; i < t.elems(); ++i) {
      const double x = t.dtype() == DType::f32 ? t.as<float>()[i] : get_element(t, i);
      if (std::isfinite(x)) continue;
      throw Error(ErrorKind::numeric,
                  fmt::format("nothing saved at step {}; first non-finite value: {} of '{}', "
                              "element {}",
                              step, x, slot.name, i))
          .with_hint(recovery_hint());
    }
  }
}

std::string Trainer::Impl::recovery_hint() const {
  if (result.last_checkpoint.empty())
    return "no checkpoint was saved yet; try a lower rate: `--lr-mult 0.5`";
  return fmt::format(
      "last good checkpoint: {}; continue it with `tightloop train --resume {} --lr-mult 0.5`",
      result.last_checkpoint, result.last_checkpoint);
}

std::string Trainer::Impl::save(int64_t step, TrainObserver& observer) {
  expect_finite_state(step);
  folder->flush();
  const std::string path = folder->file(fmt::format("checkpoints/{}", checkpoint_name(step)));
  save_checkpoint(path, *slots, plan.model, state_json(step), tokenizer->to_json());
  prune_checkpoints(folder->file("checkpoints"), config.keep_checkpoints);
  result.last_checkpoint = path;
  observer.on_checkpoint(path);
  return path;
}

void Trainer::Impl::copy_checkpoint(const std::string& to) {
  TL_CHECK(!resume_checkpoint.empty());
  allocate();
  restore();
  save_checkpoint(to, *slots, plan.model, state_json(first_step), tokenizer->to_json());
}

}  // namespace tightloop
