#include "tightloop/core/json.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"

namespace tightloop {
namespace {

[[noreturn]] void wrong_type(const Json& value,
                             std::string_view key,
                             std::string_view where,
                             std::string_view expected) {
  std::string got = value.is_structured() ? std::string(value.type_name()) : value.dump();
  if (got.size() > 60) got = got.substr(0, 57) + "...";
  fail(ErrorKind::data, "{}: field '{}' is {}, expected {}", where, key, got, expected);
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name) {
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    const size_t at = std::min(error.byte > 0 ? error.byte - 1 : 0, text.size());
    const std::string_view before = text.substr(0, at);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const size_t newline = before.rfind('\n');
    const size_t column = newline == std::string_view::npos ? at + 1 : at - newline;
    // "[json.exception.parse_error.101] parse error at line 1, column 2: <what>"
    std::string what = error.what();
    const size_t colon = what.find(": ");
    if (colon != std::string::npos) what = what.substr(colon + 2);
    fail(ErrorKind::data, "{}:{}:{}: not valid JSON: {}", name, line, column, what);
  } catch (const Json::exception& error) {  // a number out of range
    fail(ErrorKind::data, "{}: not usable JSON: {}", name, error.what());
  }
}

Json read_json(const std::string& path, int64_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

const Json* find_field(const Json& object, std::string_view key, std::string_view where) {
  if (!object.is_object())
    fail(ErrorKind::data, "{}: is {}, expected an object", where, object.type_name());
  const auto found = object.find(std::string(key));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const Json& get_field(const Json& object, std::string_view key, std::string_view where) {
  const Json* value = find_field(object, key, where);
  if (value == nullptr) fail(ErrorKind::data, "{}: field '{}' is missing", where, key);
  return *value;
}

bool get_bool(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (!value.is_boolean()) wrong_type(value, key, where, "true or false");
  return value.get<bool>();
}

int64_t get_int(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    wrong_type(value, key, where, "a whole number below 2^63");
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double x = value.get<double>();
    if (std::abs(x) <= 0x1.0p53 && x == std::floor(x)) return static_cast<int64_t>(x);
  }
  wrong_type(value, key, where, "a whole number");
}

double get_double(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (!value.is_number()) wrong_type(value, key, where, "a number");
  return value.get<double>();
}

std::string get_string(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (!value.is_string()) wrong_type(value, key, where, "a string");
  return value.get<std::string>();
}

const Json& get_array(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (!value.is_array()) wrong_type(value, key, where, "a list");
  return value;
}

const Json& get_object(const Json& object, std::string_view key, std::string_view where) {
  const Json& value = get_field(object, key, where);
  if (!value.is_object()) wrong_type(value, key, where, "an object");
  return value;
}

bool get_bool(const Json& object, std::string_view key, std::string_view where, bool otherwise) {
  return find_field(object, key, where) == nullptr ? otherwise : get_bool(object, key, where);
}

int64_t get_int(const Json& object,
                std::string_view key,
                std::string_view where,
                int64_t otherwise) {
  return find_field(object, key, where) == nullptr ? otherwise : get_int(object, key, where);
}

double get_double(const Json& object,
                  std::string_view key,
                  std::string_view where,
                  double otherwise) {
  return find_field(object, key, where) == nullptr ? otherwise : get_double(object, key, where);
}

std::string get_string(const Json& object,
                       std::string_view key,
                       std::string_view where,
                       const std::string& otherwise) {
  return find_field(object, key, where) == nullptr ? otherwise : get_string(object, key, where);
}

}  // namespace tightloop
