#include "tightloop/train/data/loader.h"

#include <algorithm>
#include <utility>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

/// FNV-1a with whole ids in the place of bytes.
uint64_t hash_of(const std::vector<int32_t>& tokens, const std::vector<int32_t>& targets) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::vector<int32_t>* ids : {&tokens, &targets}) {
    for (const int32_t id : *ids) hash = (hash ^ static_cast<uint32_t>(id)) * 0x100000001b3;
  }
  return hash;
}

}  // namespace

void fill_batch(RowPacker& packer, int64_t B, Batch& batch) {
  const int64_t T = packer.T();
  const auto total = static_cast<size_t>(B * T);
  const auto row = static_cast<size_t>(T + 1);
  batch.B = B;
  batch.T = T;
  batch.tokens.resize(total);
  batch.targets.resize(total);
  batch.floor.resize(packer.has_floor() ? total : 0);
  batch.skill.resize(packer.has_floor() ? total : 0);
  batch.document_starts.clear();
  batch.document_starts.reserve(total + 1);  // documents of one token, and one that begins at T
  thread_local std::vector<int32_t> tokens;
  thread_local std::vector<float> floor;
  thread_local std::vector<uint8_t> skill;
  tokens.resize(row);
  floor.resize(packer.has_floor() ? row : 0);
  skill.resize(packer.has_floor() ? row : 0);
  for (int64_t b = 0; b < B; ++b) {
    const size_t first_start = batch.document_starts.size();
    packer.next({.tokens = tokens, .floor = floor, .skill = skill}, batch.document_starts);
    // A document that begins at T is a target only.
    if (batch.document_starts.back() == T) batch.document_starts.pop_back();
    for (size_t i = first_start; i < batch.document_starts.size(); ++i)
      batch.document_starts[i] += static_cast<int32_t>(b * T);
    const std::ptrdiff_t at = b * T;
    std::copy(tokens.begin(), tokens.end() - 1, batch.tokens.begin() + at);
    std::copy(tokens.begin() + 1, tokens.end(), batch.targets.begin() + at);
    if (!packer.has_floor()) continue;
    std::copy(floor.begin() + 1, floor.end(), batch.floor.begin() + at);
    std::copy(skill.begin() + 1, skill.end(), batch.skill.begin() + at);
  }
  batch.hash = hash_of(batch.tokens, batch.targets);
  packer.save(batch.cursor);
}

BatchLoader::BatchLoader(DocumentOptions options,
                         int64_t B,
                         int64_t T,
                         const std::optional<DataCursor>& resume)
    : packer_(std::move(options), T), B_(B) {
  if (B < 1) fail(ErrorKind::usage, "the batch has {} rows, expected at least 1", B);
  if (resume) packer_.restore(*resume);
  thread_ = std::thread([this] { work(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void BatchLoader::work() {
  for (int64_t i = 0;; ++i) {
    {
      // Batch i − 2 lies where batch i goes; it is in use until batch i − 1 is handed out.
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || given_ >= i; });
      if (stop_) return;
    }
    std::exception_ptr error;
    try {
      fill_batch(packer_, B_, batches_[i % 2]);
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      made_ = i + 1;
      error_ = error;
    }
    changed_.notify_all();
    if (error) return;
  }
}

const Batch& BatchLoader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return made_ > given_; });
  if (error_ && made_ == given_ + 1) std::rethrow_exception(error_);
  const Batch& batch = batches_[given_ % 2];
  ++given_;
  lock.unlock();
  changed_.notify_all();
  return batch;
}

}  // namespace tightloop
