#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace tightloop {

/// Include <nlohmann/json.hpp> in .cpp files only: it takes seconds to compile.
/// `Json` sorts keys and finds them fast: use it to read. `OrderedJson` keeps the order of
/// insertion, but looks keys up one by one: use it to write records.
using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

/// Parses a JSON document; `name` is for messages. Error{data}: "<name>:<line>:<column>: ...".
Json parse_json(std::string_view text, const std::string& name);
/// Error{io} when the file cannot be read, Error{data} when it is not JSON or above `max_bytes`.
Json read_json(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

/// The field of an object, or null when it is missing or JSON null. `where` names the object in
/// messages ("case.json: config"). Error{data} when `object` is no object.
const Json* find_field(const Json& object, std::string_view key, std::string_view where);
/// As find_field, but Error{data} when it is missing.
const Json& get_field(const Json& object, std::string_view key, std::string_view where);

/// A field of the given type. Error{data} naming where, field, what it is and what was expected.
bool get_bool(const Json& object, std::string_view key, std::string_view where);
/// Floats with a whole value (2.0) are accepted.
int64_t get_int(const Json& object, std::string_view key, std::string_view where);
double get_double(const Json& object, std::string_view key, std::string_view where);
std::string get_string(const Json& object, std::string_view key, std::string_view where);
const Json& get_array(const Json& object, std::string_view key, std::string_view where);
const Json& get_object(const Json& object, std::string_view key, std::string_view where);

/// As above, with a default for a missing (or null) field.
bool get_bool(const Json& object, std::string_view key, std::string_view where, bool otherwise);
int64_t get_int(const Json& object,
                std::string_view key,
                std::string_view where,
                int64_t otherwise);
double get_double(const Json& object,
                  std::string_view key,
                  std::string_view where,
                  double otherwise);
std::string get_string(const Json& object,
                       std::string_view key,
                       std::string_view where,
                       const std::string& otherwise);

}  // namespace tightloop
