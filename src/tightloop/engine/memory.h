#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tightloop/core/exec.h"
#include "tightloop/program/program.h"

namespace tightloop {

constexpr int64_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

constexpr int64_t align_up(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// A zeroed block taken straight from the operating system, so that it can be counted from outside.
/// Huge pages are requested. Error{oom} with the size when there is not enough.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  explicit MemoryBlock(int64_t bytes);
  ~MemoryBlock();
  MemoryBlock(MemoryBlock&& other) noexcept;
  MemoryBlock& operator=(MemoryBlock&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Bytes of all living MemoryBlocks: what plans are compared with. And the most there ever were.
int64_t memory_block_bytes();
int64_t peak_memory_block_bytes();

/// MemoryBlocks made by this process so far.
int64_t memory_blocks_made();

/// The memory of every slot of a table on one device. On the reference device floats are float64.
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

 private:
  std::shared_ptr<const SlotTable> table_;
  Device device_;
  MemoryBlock block_;
  std::vector<TensorView> views_;
};

}  // namespace tightloop
