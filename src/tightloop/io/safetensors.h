#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tightloop/core/file.h"
#include "tightloop/core/tensor.h"

namespace tightloop {

/// The safetensors format: uint64 header length, a JSON header {"name": {"dtype", "shape",
/// "data_offsets": [begin, end)}, "__metadata__": {string: string}}, then the data, all
/// little-endian. Source: https://github.com/huggingface/safetensors (format section).

/// A header longer than this is refused, as the reference implementation does.
inline constexpr int64_t kSafetensorsMaxHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  std::string stored_dtype;  // as in the file: "F32", "BF16", "F16", ...
  bool supported = false;    // stored_dtype is one of ours, so `type` and the data can be used
  Type type;                 // dtype is meaningless unless `supported`
  int64_t offset = 0;        // of the first byte, from the start of the file
  int64_t bytes = 0;
};

struct SafetensorsIndex {
  std::vector<SafetensorsEntry> entries;  // by offset
  std::map<std::string, std::string> metadata;
};

/// Checks a whole file given as bytes and lists it; `name` is for messages. Checked before use: the
/// header length against the file, the JSON, duplicate names, dtype names, shapes (overflow, rank
/// <= 5), offsets inside the file, sizes = dtype x shape, no overlap, no holes, no surplus bytes.
/// Error{data} naming file, tensor, field and offset.
SafetensorsIndex parse_safetensors(std::span<const uint8_t> bytes, const std::string& name);

struct NamedTensor {
  std::string name;
  ConstTensorView view;
};

/// A mapped safetensors file. Views stay valid as long as this object; tensors that are not aligned
/// in the file are copied to aligned memory. Errors: as parse_safetensors, and Error{io}.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, std::string>& metadata() const { return index_.metadata; }
  /// Everything in the file, unsupported dtypes included.
  const std::vector<SafetensorsEntry>& entries() const { return index_.entries; }
  /// Every tensor of a supported dtype, in the order of the file.
  const std::vector<NamedTensor>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const;
  /// Error{data} with the nearest name when it is missing, Error{dtype} when its dtype is not ours.
  ConstTensorView at(std::string_view name) const;
  /// As at(), and Error{data} when dtype or shape differ from `expected`.
  ConstTensorView at(std::string_view name, const Type& expected) const;

 private:
  MappedFile file_;
  SafetensorsIndex index_;
  std::vector<NamedTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;  // into index_.entries
  std::vector<size_t> tensor_of_entry_;              // into tensors_; SIZE_MAX when unsupported
  std::vector<std::vector<uint8_t>> copies_;
};

/// Writes the file atomically, straight from the views: no copy of the data. Tensors go in the
/// order given, those of wider elements first, so that all are aligned without holes; data starts
/// at a multiple of 64. The same arguments give the same bytes. Errors: Error{usage} for a
/// duplicate or reserved name, Error{io}.
void write_safetensors(const std::string& path,
                       std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tightloop
