#include "tightloop/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kDataAlignment = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

struct StoredDType {
  std::string_view name;
  int64_t bytes;
  std::optional<DType> dtype;
};

/// Every dtype of the format whose elements are whole bytes.
constexpr std::array kStoredDTypes = {
    StoredDType{"F64", 8, DType::f64},       StoredDType{"F32", 4, DType::f32},
    StoredDType{"BF16", 2, DType::bf16},     StoredDType{"I64", 8, DType::i64},
    StoredDType{"I32", 4, DType::i32},       StoredDType{"U16", 2, DType::u16},
    StoredDType{"U8", 1, DType::u8},         StoredDType{"F16", 2, std::nullopt},
    StoredDType{"I16", 2, std::nullopt},     StoredDType{"U32", 4, std::nullopt},
    StoredDType{"U64", 8, std::nullopt},     StoredDType{"I8", 1, std::nullopt},
    StoredDType{"BOOL", 1, std::nullopt},    StoredDType{"F8_E4M3", 1, std::nullopt},
    StoredDType{"F8_E5M2", 1, std::nullopt}, StoredDType{"C64", 8, std::nullopt},
};

const StoredDType* find_stored_dtype(std::string_view name) {
  for (const StoredDType& stored : kStoredDTypes)
    if (stored.name == name) return &stored;
  return nullptr;
}

std::string_view stored_name(DType dtype) {
  for (const StoredDType& stored : kStoredDTypes)
    if (stored.dtype == dtype) return stored.name;
  return "?";
}

std::string list_text(const std::vector<int64_t>& values) {
  std::string text;
  for (const int64_t value : values) text += fmt::format("{}{}", text.empty() ? "" : ", ", value);
  return text;
}

/// Receives the JSON header as events, so that duplicate names are seen and a hostile header builds
/// no tree. Levels: 1 the root object, 2 a tensor or the metadata, 3 a shape or data_offsets list.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(const std::string& file, SafetensorsIndex& index) : file_(file), index_(index) {}

  bool null() override { return wrong("null"); }
  bool boolean(bool) override { return wrong("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return wrong(fmt::format("{}", value).c_str());
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != 3 || value > static_cast<uint64_t>(INT64_MAX))
      return wrong(fmt::format("{}", value).c_str());
    if (list_->size() == kMaxList)
      fail(ErrorKind::data, "{}: {}: more than {} numbers", file_, where(), kMaxList);
    list_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_float(number_float_t, const string_t& text) override { return wrong(text.c_str()); }
  bool string(string_t& value) override {
    if (level_ == 2 && in_metadata_) {
      if (!index_.metadata.emplace(field_, value).second)
        fail(ErrorKind::data, "{}: {}: given twice", file_, where());
      return true;
    }
    if (level_ != 2 || field_ != "dtype") return wrong("a string");
    dtype_ = value;
    return true;
  }
  bool binary(binary_t&) override { return wrong("binary data"); }

  bool start_object(size_t) override {
    if (level_ >= 2) return wrong("an object");
    ++level_;
    if (level_ == 2) {
      in_metadata_ = name_ == kMetadataKey;
      dtype_.reset();
      shape_.reset();
      offsets_.reset();
    }
    return true;
  }
  bool key(string_t& value) override {
    if (level_ == 1) {
      name_ = value;
      if (!names_.insert(name_).second)
        fail(ErrorKind::data, "{}: header: tensor '{}' is given twice", file_, name_);
      return true;
    }
    field_ = value;
    if (in_metadata_) return true;
    const bool twice = (field_ == "dtype" && dtype_) || (field_ == "shape" && shape_) ||
                       (field_ == "data_offsets" && offsets_);
    if (twice) fail(ErrorKind::data, "{}: {}: given twice", file_, where());
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets")
      fail(ErrorKind::data, "{}: {}: unknown field, expected dtype, shape, data_offsets", file_,
           where());
    return true;
  }
  bool end_object() override {
    if (level_ == 2 && !in_metadata_) finish_tensor();
    --level_;
    return true;
  }
  bool start_array(size_t) override {
    if (level_ != 2 || in_metadata_ || field_ == "dtype") return wrong("a list");
    level_ = 3;
    list_ = field_ == "shape" ? &shape_.emplace() : &offsets_.emplace();
    return true;
  }
  bool end_array() override {
    level_ = 2;
    return true;
  }
  bool parse_error(size_t position,
                   const std::string&,
                   const nlohmann::detail::exception& error) override {
    fail(ErrorKind::data, "{}: header at byte {}: not valid JSON: {}", file_,
         kLengthBytes + static_cast<int64_t>(position), error.what());
  }

 private:
  static constexpr size_t kMaxList = 16;

  std::string where() const {
    if (level_ <= 1) return name_.empty() ? "header" : fmt::format("header: '{}'", name_);
    return fmt::format("header: tensor '{}': field '{}'", name_, field_);
  }
  [[noreturn]] bool wrong(const char* got) const {
    const char* expected = "an object";
    if (level_ == 2) expected = in_metadata_ || field_ == "dtype" ? "a string" : "a list of sizes";
    if (level_ == 3) expected = "a whole number of at least 0";
    fail(ErrorKind::data, "{}: {}: got {}, expected {}", file_, where(), got, expected);
  }

  void finish_tensor() {
    const char* missing = !dtype_     ? "dtype"
                          : !shape_   ? "shape"
                          : !offsets_ ? "data_offsets"
                                      : nullptr;
    if (missing != nullptr)
      fail(ErrorKind::data, "{}: header: tensor '{}': field '{}' is missing", file_, name_,
           missing);
    SafetensorsEntry entry;
    entry.name = name_;
    entry.stored_dtype = *dtype_;
    const StoredDType* stored = find_stored_dtype(*dtype_);
    if (stored == nullptr)
      fail(ErrorKind::data, "{}: header: tensor '{}': unknown dtype '{}'", file_, name_, *dtype_);
    entry.supported = stored->dtype.has_value();
    if (stored->dtype) entry.type.dtype = *stored->dtype;
    if (shape_->size() > static_cast<size_t>(Shape::kMaxRank))
      fail(ErrorKind::data,
           "{}: header: tensor '{}': shape has {} dimensions, at most {} are supported", file_,
           name_, shape_->size(), Shape::kMaxRank);
    int64_t bytes = stored->bytes;
    for (const int64_t dim : *shape_) {
      if (__builtin_mul_overflow(bytes, dim, &bytes))
        fail(ErrorKind::data, "{}: header: tensor '{}': shape [{}] overflows", file_, name_,
             list_text(*shape_));
      entry.type.shape.push_back(dim);
    }
    if (offsets_->size() != 2 || (*offsets_)[0] > (*offsets_)[1])
      fail(ErrorKind::data, "{}: header: tensor '{}': data_offsets [{}], expected [begin, end]",
           file_, name_, list_text(*offsets_));
    const int64_t have = (*offsets_)[1] - (*offsets_)[0];
    if (have != bytes)
      fail(ErrorKind::data,
           "{}: header: tensor '{}': data_offsets [{}] hold {} bytes, {} of shape [{}] needs {}",
           file_, name_, list_text(*offsets_), have, *dtype_, list_text(*shape_), bytes);
    entry.offset = (*offsets_)[0];  // from the start of the data for now
    entry.bytes = bytes;
    index_.entries.push_back(std::move(entry));
  }

  const std::string& file_;
  SafetensorsIndex& index_;
  int level_ = 0;
  bool in_metadata_ = false;
  std::string name_;
  std::string field_;
  std::set<std::string> names_;
  std::optional<std::string> dtype_;
  std::optional<std::vector<int64_t>> shape_;
  std::optional<std::vector<int64_t>> offsets_;
  std::vector<int64_t>* list_ = nullptr;
};

/// A JSON string literal. Error{usage} when the text is not UTF-8.
std::string quoted(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::usage, "safetensors: a name or metadata value is not valid UTF-8");
  }
}

}  // namespace

SafetensorsIndex parse_safetensors(std::span<const uint8_t> bytes, const std::string& name) {
  const auto file_bytes = static_cast<int64_t>(bytes.size());
  if (file_bytes < kLengthBytes + 2)
    fail(ErrorKind::data, "{}: file has {} bytes, too short for a safetensors header", name,
         file_bytes);
  uint64_t stored_length = 0;
  std::memcpy(&stored_length, bytes.data(), sizeof stored_length);
  if (stored_length > static_cast<uint64_t>(kSafetensorsMaxHeaderBytes))
    fail(
        ErrorKind::data,
        "{}: header length at byte 0 is {}, at most {} is allowed: no safetensors file, or corrupt",
        name, stored_length, kSafetensorsMaxHeaderBytes);
  const auto length = static_cast<int64_t>(stored_length);
  if (length > file_bytes - kLengthBytes)
    fail(ErrorKind::data, "{}: header length at byte 0 is {}, but only {} bytes follow: truncated",
         name, length, file_bytes - kLengthBytes);
  const char* header = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  if (length == 0 || header[0] != '{')
    fail(ErrorKind::data, "{}: header at byte {} does not start with '{{'", name, kLengthBytes);

  SafetensorsIndex index;
  HeaderHandler handler(name, index);
  nlohmann::json::sax_parse(header, header + length, &handler);

  std::stable_sort(index.entries.begin(), index.entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.offset, a.offset + a.bytes) < std::pair(b.offset, b.offset + b.bytes);
  });
  const int64_t data_begin = kLengthBytes + length;
  const int64_t data_bytes = file_bytes - data_begin;
  int64_t expected = 0;
  const SafetensorsEntry* previous = nullptr;
  for (SafetensorsEntry& entry : index.entries) {
    if (entry.offset > data_bytes - entry.bytes)
      fail(
          ErrorKind::data,
          "{}: tensor '{}': data_offsets [{}, {}], but the data has {} bytes: truncated or corrupt",
          name, entry.name, entry.offset, entry.offset + entry.bytes, data_bytes);
    if (entry.offset < expected)
      fail(ErrorKind::data, "{}: tensors '{}' and '{}' overlap at byte {}", name, previous->name,
           entry.name, data_begin + entry.offset);
    if (entry.offset > expected)
      fail(ErrorKind::data, "{}: {} bytes before tensor '{}' (at byte {}) belong to no tensor",
           name, entry.offset - expected, entry.name, data_begin + entry.offset);
    expected = entry.offset + entry.bytes;
    entry.offset += data_begin;
    previous = &entry;
  }
  if (expected != data_bytes)
    fail(ErrorKind::data, "{}: {} bytes after the last tensor (from byte {}) belong to no tensor",
         name, data_bytes - expected, data_begin + expected);
  return index;
}

SafetensorsFile::SafetensorsFile(std::string path)
    : file_(std::move(path)), index_(parse_safetensors(file_.bytes(), file_.path())) {
  for (size_t i = 0; i < index_.entries.size(); ++i) {
    const SafetensorsEntry& entry = index_.entries[i];
    by_name_.emplace(entry.name, i);
    tensor_of_entry_.push_back(entry.supported ? tensors_.size() : SIZE_MAX);
    if (!entry.supported) continue;
    const uint8_t* data = file_.data() + entry.offset;
    if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(entry.type.dtype)) != 0)
      data = copies_.emplace_back(data, data + entry.bytes).data();
    tensors_.push_back({entry.name, ConstTensorView(data, entry.type)});
  }
}

bool SafetensorsFile::contains(std::string_view name) const {
  return by_name_.contains(std::string(name));
}

ConstTensorView SafetensorsFile::at(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  if (found == by_name_.end()) {
    std::vector<std::string> names;
    for (const SafetensorsEntry& entry : index_.entries) names.push_back(entry.name);
    const std::string nearest = nearest_name(name, names);
    fail(ErrorKind::data, "{}: has no tensor '{}'{}", path(), name,
         nearest.empty() ? "" : fmt::format(" (nearest: '{}')", nearest));
  }
  const size_t tensor = tensor_of_entry_[found->second];
  if (tensor == SIZE_MAX)
    fail(ErrorKind::dtype,
         "{}: tensor '{}' is stored as {}, expected one of F64 F32 BF16 I64 I32 U16 U8", path(),
         name, index_.entries[found->second].stored_dtype);
  return tensors_[tensor].view;
}

ConstTensorView SafetensorsFile::at(std::string_view name, const Type& expected) const {
  const ConstTensorView view = at(name);
  if (!(view.type == expected))
    fail(ErrorKind::data, "{}: tensor '{}' is {}, expected {}", path(), name, to_string(view.type),
         to_string(expected));
  return view;
}

void write_safetensors(const std::string& path,
                       std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedTensor*> order;
  std::set<std::string_view> names;
  for (const NamedTensor& tensor : tensors) {
    if (tensor.name == kMetadataKey || !names.insert(tensor.name).second)
      fail(ErrorKind::usage, "{}: tensor name '{}' is reserved or given twice", path, tensor.name);
    if (tensor.view.empty() && tensor.view.bytes() > 0)
      fail(ErrorKind::usage, "{}: tensor '{}' has no data", path, tensor.name);
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return size_of(a->view.dtype()) > size_of(b->view.dtype());
  });

  std::string header = "{";
  if (!metadata.empty()) {
    header += fmt::format("\"{}\":{{", kMetadataKey);
    for (const auto& [key, value] : metadata)
      header += fmt::format("{}{}:{}", header.back() == '{' ? "" : ",", quoted(key), quoted(value));
    header += '}';
  }
  int64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    const Type& type = tensor->view.type;
    std::string dims;
    for (int i = 0; i < type.shape.rank(); ++i)
      dims += fmt::format("{}{}", i == 0 ? "" : ",", type.shape[i]);
    header += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          header.size() == 1 ? "" : ",", quoted(tensor->name),
                          stored_name(type.dtype), dims, offset, offset + type.bytes());
    offset += type.bytes();
  }
  header += '}';
  while ((kLengthBytes + static_cast<int64_t>(header.size())) % kDataAlignment != 0) header += ' ';
  if (static_cast<int64_t>(header.size()) > kSafetensorsMaxHeaderBytes)
    fail(ErrorKind::usage, "{}: header of {} bytes, at most {} are allowed", path, header.size(),
         kSafetensorsMaxHeaderBytes);

  AtomicFile file(path);
  const uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header.data(), static_cast<int64_t>(header.size()));
  for (const NamedTensor* tensor : order) file.write(tensor->view.data, tensor->view.bytes());
  file.commit();
}

}  // namespace tightloop
