#include "tightloop/train/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/checksum.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/io/safetensors.h"
#include "tightloop/model/nanochat_init.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

std::string in(const std::string& folder, std::string_view file) {
  return (fs::path(folder) / file).string();
}

std::vector<NamedTensor> tensors_of(const SlotStore& slots, SlotRole role) {
  std::vector<NamedTensor> tensors;
  for (const Slot& slot : slots.table().all()) {
    if (slot.role == role) tensors.push_back({slot.name, slots.pull(slot.name)});
  }
  return tensors;
}

void load_role(const std::string& path, const SlotStore& slots, SlotRole role) {
  const SafetensorsFile file(path);
  for (const Slot& want : slots.table().all()) {
    if (want.role != role) continue;
    const TensorView slot = slots.host(want.name);
    const ConstTensorView stored = file.at(want.name);
    if (!(stored.shape() == slot.shape()))
      fail(ErrorKind::data, "{}: tensor '{}' has shape {}, expected {}", path, want.name,
           to_string(stored.shape()), to_string(slot.shape()));
    if (stored.dtype() == slot.dtype()) {
      std::memcpy(slot.data, stored.data, static_cast<size_t>(slot.bytes()));
    } else {
      for (int64_t i = 0; i < slot.elems(); ++i) set_element(slot, i, get_element(stored, i));
    }
    slots.push(want.name);
  }
}

std::string sum_of(const std::string& path) {
  return fmt::format("{:016x}", checksum_file(path));
}

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.data()), static_cast<size_t>(file.size())};
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  return fmt::format("step_{:06d}", step);
}

void save_checkpoint(const std::string& folder,
                     const SlotStore& slots,
                     const NanochatConfig& config,
                     const OrderedJson& state,
                     const std::string& tokenizer_json) {
  PendingDirectory pending(folder);
  write_safetensors(in(pending.path(), CheckpointFiles::kModel),
                    tensors_of(slots, SlotRole::parameter));
  write_safetensors(in(pending.path(), CheckpointFiles::kOptimizer),
                    tensors_of(slots, SlotRole::optimizer));
  write_file_atomically(in(pending.path(), CheckpointFiles::kConfig), nanochat_config_json(config));
  write_file_atomically(in(pending.path(), CheckpointFiles::kState), state.dump(1));
  write_file_atomically(in(pending.path(), CheckpointFiles::kTokenizer), tokenizer_json);
  OrderedJson sums;
  for (const std::string_view file : {CheckpointFiles::kModel, CheckpointFiles::kOptimizer})
    sums[std::string(file)] = sum_of(in(pending.path(), file));
  write_file_atomically(in(pending.path(), CheckpointFiles::kSums), sums.dump(1) + "\n");
  pending.publish();
}

std::vector<std::string> list_checkpoints(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step_") && !is_temporary_name(name) &&
        is_complete_directory(entry.path().string()))
      found.push_back(entry.path().string());
  }
  // Longer names are later steps.
  std::sort(found.begin(), found.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  return found;
}

void prune_checkpoints(const std::string& folder, int64_t keep) {
  const std::vector<std::string> all = list_checkpoints(folder);
  for (size_t i = 0; i + static_cast<size_t>(keep) < all.size(); ++i) remove_tree(all[i]);
}

std::string find_checkpoint(const std::string& path) {
  if (fs::exists(in(path, CheckpointFiles::kModel))) {
    check_complete_directory(path);
    return path;
  }
  const std::vector<std::string> all = list_checkpoints(in(path, "checkpoints"));
  if (!all.empty()) return all.back();
  if (!fs::exists(path))
    throw Error(ErrorKind::io, fmt::format("'{}' does not exist", path))
        .with_hint("give a run folder or a checkpoint: `ls -t runs`");
  throw Error(ErrorKind::io, fmt::format("'{}' holds no complete checkpoint", path))
      .with_hint("a run folder has checkpoints/step_NNNNNN; train with --save-every to have more");
}

void check_checkpoint_sum(const std::string& checkpoint, std::string_view file) {
  const std::string sums = in(checkpoint, CheckpointFiles::kSums), path = in(checkpoint, file);
  const std::string expected = get_string(read_json(sums), file, sums), got = sum_of(path);
  if (got != expected)
    throw Error(ErrorKind::data, fmt::format("{}: its bytes have changed since it was written: "
                                             "checksum {}, expected {}",
                                             path, got, expected))
        .with_hint("use another checkpoint of the run, or copy this one again");
}

void load_checkpoint_slots(const std::string& checkpoint,
                           const SlotStore& slots,
                           bool with_optimizer) {
  const auto load = [&](std::string_view file, SlotRole role) {
    check_checkpoint_sum(checkpoint, file);
    load_role(in(checkpoint, file), slots, role);
  };
  load(CheckpointFiles::kModel, SlotRole::parameter);
  if (with_optimizer) load(CheckpointFiles::kOptimizer, SlotRole::optimizer);
}

Json load_checkpoint_state(const std::string& checkpoint) {
  return read_json(in(checkpoint, CheckpointFiles::kState));
}

NanochatConfig load_checkpoint_config(const std::string& checkpoint) {
  const std::string path = in(checkpoint, CheckpointFiles::kConfig);
  return nanochat_config_from_json(read_text(path), path);
}

}  // namespace tightloop
