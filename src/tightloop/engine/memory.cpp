#include "tightloop/engine/memory.h"

#include <atomic>
#include <sys/mman.h>
#include <utility>

#include "tightloop/ops/op_entry.h"

namespace tightloop {
namespace {

std::atomic<int64_t> g_block_bytes{0}, g_peak_bytes{0};
std::atomic<int64_t> g_blocks_made{0};

std::byte* map_host_memory(int64_t bytes) {
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    fail(ErrorKind::oom, "cannot allocate {:.1f} MiB", static_cast<double>(bytes) / 0x1p20);
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return static_cast<std::byte*>(p);
}

}  // namespace

MemoryBlock::MemoryBlock(int64_t bytes, Device device) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  data_ = device == Device::cuda ? cuda::allocate(bytes) : map_host_memory(bytes);
  const int64_t now = g_block_bytes += bytes;
  for (int64_t peak = g_peak_bytes.load(); peak < now;) {
    if (g_peak_bytes.compare_exchange_weak(peak, now)) break;
  }
  ++g_blocks_made;
}

MemoryBlock::~MemoryBlock() {
  if (data_ == nullptr) return;
  if (device_ == Device::cuda) {
    cuda::release(data_);
  } else {
    munmap(data_, static_cast<size_t>(bytes_));
  }
  g_block_bytes -= bytes_;
}

MemoryBlock::MemoryBlock(MemoryBlock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

MemoryBlock& MemoryBlock::operator=(MemoryBlock&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

int64_t memory_block_bytes() {
  return g_block_bytes.load();
}

int64_t peak_memory_block_bytes() {
  return g_peak_bytes.load();
}

int64_t memory_blocks_made() {
  return g_blocks_made.load();
}

SlotStore::SlotStore(std::shared_ptr<const SlotTable> table, Device device, const SlotStore* lender)
    : table_(std::move(table)), device_(device) {
  TL_CHECK(lender == nullptr || lender->device() == device);
  int64_t offset = 0;
  std::vector<int64_t> offsets;
  for (const Slot& slot : table_->all()) {
    const std::optional<SlotId> lent =
        lender == nullptr ? std::nullopt : lender->table().find(slot.name);
    const Slot* other = lent ? &lender->table()[*lent] : nullptr;
    if (other != nullptr && other->type == slot.type && other->role == slot.role) {
      views_.push_back(lender->view(*lent));
      offsets.push_back(-1);
      continue;
    }
    views_.push_back({nullptr, type_on(device, slot.type)});
    offsets.push_back(offset);
    offset += align_up(views_.back().bytes());
  }
  block_ = MemoryBlock(offset, device);
  mirrors_.resize(views_.size());
  for (size_t i = 0; i < views_.size(); ++i) {
    if (offsets[i] >= 0) views_[i].data = block_.data() + offsets[i];
  }
}

SlotStore::Copy::Copy(int64_t bytes, SlotRole role) {
  if (role == SlotRole::input || role == SlotRole::scalar || role == SlotRole::output) {
    pinned = cuda::allocate_pinned(bytes);
  } else {
    block = MemoryBlock(bytes);
  }
  if (role != SlotRole::input) return;
  staging = MemoryBlock(bytes, Device::cuda);
  taken.record();  // after the zeroing of `staging`
}

SlotStore::Copy::~Copy() {
  if (pinned != nullptr) cuda::release_pinned(pinned);
}

SlotStore::Mirror& SlotStore::mirror(SlotId id) const {
  Mirror& m = mirrors_[static_cast<size_t>(id.index)];
  if (m.copies[0] == nullptr) {
    const SlotRole role = (*table_)[id].role;
    m.copies[0] = std::make_unique<Copy>(view(id).bytes(), role);
    if (role == SlotRole::input) m.copies[1] = std::make_unique<Copy>(view(id).bytes(), role);
  }
  return m;
}

TensorView SlotStore::host(SlotId id) const {
  if (device_ != Device::cuda) return view(id);
  const Copy& copy = mirror(id).copy();
  copy.sent.wait();
  return {copy.data(), view(id).type};
}

void SlotStore::push(SlotId id) const {
  if (device_ != Device::cuda) return;
  Mirror& m = mirror(id);
  Copy& copy = m.copy();
  const TensorView slot = view(id);
  if (copy.staging.data() == nullptr) {
    cuda::enqueue_copy_to_device(slot.data, copy.data(), slot.bytes());
    copy.sent.record();
    return;
  }
  copy.taken.hold_uploads();
  cuda::enqueue_upload(copy.staging.data(), copy.data(), slot.bytes());
  copy.sent.record_upload();
  copy.sent.hold_stream();
  cuda::enqueue_copy_on_device(slot.data, copy.staging.data(), slot.bytes());
  copy.taken.record();
  m.turn = 1 - m.turn;
}

TensorView SlotStore::pull(SlotId id) const {
  if (device_ != Device::cuda) return view(id);
  const Copy& copy = mirror(id).copy();
  cuda::copy_to_host(copy.data(), view(id).data, view(id).bytes());
  return {copy.data(), view(id).type};
}

}  // namespace tightloop
