#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tightloop {

struct FetchItem {
  std::string url;
  std::string name;              // file name in the folder; no slashes
  std::optional<int64_t> bytes;  // expected size
  std::string sha256;            // expected, 64 hex digits; empty: not checked
};

struct FetchProgress {
  int64_t item = 0;   // index into the list
  int64_t items = 0;  // length of the list
  std::string name;
  int64_t bytes_done = 0;              // of this file, what an earlier try left included
  std::optional<int64_t> bytes_total;  // when known
};

struct FetchOptions {
  int retries = 5;  // after the first try of each file, counted since the last progress
  double first_backoff_s = 1.0;  // doubles with each retry, up to 30 s
  double stall_s = 30.0;         // a transfer slower than 1 byte/s for this long is tried again
  /// Called a few times a second. Returning false stops: Error{interrupted}; the part stays.
  std::function<bool(const FetchProgress&)> progress;
};

enum class FetchOutcome { downloaded, resumed, already_there };

/// Downloads every item into `folder` (made when missing), one after the other. A file in progress
/// is
/// `<name>.part`; the next call asks the server for the rest of it. When whole, it is checked
/// (size, sha256), synced and renamed, so a file under its own name is complete. A file already
/// there with the expected size and hash is skipped; one that differs is downloaded again. Errors:
/// Error{io} naming the URL when the server refuses (4xx at once, 5xx and broken transfers after
/// the retries) or the disk is full; Error{data} when size or hash differ after a complete
/// download: that part is removed. Files fetched before the error stay.
std::vector<FetchOutcome> fetch_files(const std::vector<FetchItem>& items,
                                      const std::string& folder,
                                      const FetchOptions& options = {});

/// The public GPT-2 tokens of FineWeb-10B that modded-nanogpt trains on: the validation shard and
/// the first `train_shards` of 103 training shards (100M tokens, 200 MB each). Error{usage} for a
/// count outside 1..103.
std::vector<FetchItem> fineweb10b_list(int train_shards);

/// A list in text form: one "<url> [bytes] [sha256] [name]" per line, in any order after the URL,
/// '#' for comments; the name is by default the last part of the URL. Error{data} naming the line.
std::vector<FetchItem> parse_fetch_list(std::string_view text, const std::string& name);

}  // namespace tightloop
