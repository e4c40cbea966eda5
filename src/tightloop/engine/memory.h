#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/exec.h"
#include "tightloop/program/program.h"

namespace tightloop {

constexpr int64_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

constexpr int64_t align_up(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// A zeroed block of memory. Of the host: straight from the operating system, so that it can be
/// counted from outside, with huge pages requested. On cuda: one allocation of the driver's.
/// Error{oom} with the size when there is not enough.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  explicit MemoryBlock(int64_t bytes, Device device = Device::cpu);
  ~MemoryBlock();
  MemoryBlock(MemoryBlock&& other) noexcept;
  MemoryBlock& operator=(MemoryBlock&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_ = Device::cpu;
};

/// Bytes of all living MemoryBlocks: what plans are compared with. And the most there ever were.
int64_t memory_block_bytes();
int64_t peak_memory_block_bytes();

/// MemoryBlocks made by this process so far.
int64_t memory_blocks_made();

/// The memory of every slot of a table on one device. On the reference device floats are float64.
///
/// The host reads and writes a slot through host(): the slot itself on cpu and ref, where push()
/// and pull() then do nothing. On cuda it is a copy that is made at the first call and kept,
/// page-locked for inputs, scalars and outputs; push() sends it to the slot, pull() fetches the
/// slot. An input has two such copies and two places on the device to which they are uploaded, in
/// turn: the upload runs beside what is computed, and only its copy into the slot is ordered with
/// the work. So after a push() of an input, host() is the other copy: write all of it.
class SlotStore {
 public:
  /// Slots that `lender` has under the same name with the same type and role lie in its memory; it
  /// must outlive this store.
  SlotStore(std::shared_ptr<const SlotTable> table,
            Device device,
            const SlotStore* lender = nullptr);

  Device device() const { return device_; }
  const SlotTable& table() const { return *table_; }
  TensorView view(SlotId id) const { return views_[static_cast<size_t>(id.index)]; }
  TensorView view(std::string_view name) const { return view(table_->get(name)); }
  int64_t bytes() const { return block_.bytes(); }

  /// Waits until an earlier push() of it has left the host's copy; of an input, the push before the
  /// last.
  TensorView host(SlotId id) const;
  TensorView host(std::string_view name) const { return host(table_->get(name)); }
  /// Enqueued: work enqueued later sees the new content.
  void push(SlotId id) const;
  void push(std::string_view name) const { push(table_->get(name)); }
  /// Waits for all enqueued work. Returns host().
  TensorView pull(SlotId id) const;
  TensorView pull(std::string_view name) const { return pull(table_->get(name)); }

 private:
  /// A copy of a slot on the host of cuda.
  struct Copy {
    Copy(int64_t bytes, SlotRole role);
    ~Copy();
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;

    MemoryBlock block;            // ordinary memory, or
    std::byte* pinned = nullptr;  // page-locked
    MemoryBlock staging;          // on the device, of an input
    cuda::Event sent;             // it has left the host
    cuda::Event taken;            // it has left `staging` for the slot
    std::byte* data() const { return pinned != nullptr ? pinned : block.data(); }
  };
  struct Mirror {
    std::unique_ptr<Copy> copies[2];  // the second of inputs only
    int turn = 0;
    Copy& copy() const { return *copies[turn]; }
  };
  Mirror& mirror(SlotId id) const;

  std::shared_ptr<const SlotTable> table_;
  Device device_;
  MemoryBlock block_;
  std::vector<TensorView> views_;
  mutable std::vector<Mirror> mirrors_;  // by slot, on cuda
};

}  // namespace tightloop
