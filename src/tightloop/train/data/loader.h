#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "tightloop/train/data/pack.h"

namespace tightloop {

/// B rows of T tokens with what comes next. targets[i] is the token after tokens[i].
struct Batch {
  int64_t B = 0;
  int64_t T = 0;
  std::vector<int32_t> tokens;   // (B, T)
  std::vector<int32_t> targets;  // (B, T)
  /// Lowest reachable loss of each target (nats) and its skill; empty for data without a floor.
  std::vector<float> floor;    // (B, T)
  std::vector<uint8_t> skill;  // (B, T)
  /// Where documents begin: rising places b·T + t. Every row begins with one.
  std::vector<int32_t> document_starts;
  uint64_t hash = 0;  // of tokens and targets
  /// The state of the data after this batch: restore it to get the next one.
  DataCursor cursor;
};

/// Fills a batch with the next B rows of `packer`; its memory is reused: the second time the batch
/// needs no more.
void fill_batch(RowPacker& packer, int64_t B, Batch& batch);

/// Makes batches on a thread of its own, one ahead of the consumer. The sequence of rows does not
/// depend on B. Errors of the data are thrown by next(), in order.
class BatchLoader {
 public:
  /// `resume`: continue after the batch that this cursor came with.
  BatchLoader(DocumentOptions options,
              int64_t B,
              int64_t T,
              const std::optional<DataCursor>& resume = std::nullopt);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  /// The next batch. The reference holds until the call after this one.
  const Batch& next();
  bool has_floor() const { return packer_.has_floor(); }
  const DocumentOptions& options() const { return packer_.documents().options(); }

 private:
  void work();

  RowPacker packer_;
  int64_t B_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Batch batches_[2];
  int64_t made_ = 0;   // batches filled
  int64_t given_ = 0;  // batches handed out
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace tightloop
