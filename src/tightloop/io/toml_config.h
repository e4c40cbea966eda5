#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tightloop {

using ConfigScalar = std::variant<bool, int64_t, double, std::string>;
using ConfigValue = std::variant<bool, int64_t, double, std::string, std::vector<ConfigScalar>>;

/// One setting: a dotted key, its value, and where it came from, for messages and run records.
struct ConfigEntry {
  std::string key;  // "optim.matrix_lr"
  ConfigValue value;
  std::string origin;  // "runs/a.toml:12:3" or "--set"
};

/// The settings of a TOML document in the order they are written; `name` is for messages.
/// Error{data}
/// "<name>:<line>:<column>: ..." for bad syntax, and for what a setting cannot be: dates, tables in
/// lists, nested lists, keys with dots or line breaks in quotes.
std::vector<ConfigEntry> parse_toml(std::string_view text, const std::string& name);
/// Error{io} when the file cannot be read; Error{data} as parse_toml, or above 1 MiB.
std::vector<ConfigEntry> read_toml(const std::string& path);

/// One `--set key=value`. The value is TOML (true, 3, 0.5, "text", [1, 2]); what is no TOML value
/// is taken as text, so `--set optim.shape=cosine` needs no quotes. Error{usage}.
ConfigEntry parse_setting(std::string_view assignment);

/// The value as TOML.
std::string to_string(const ConfigValue& value);
/// "a boolean", "an integer", "a number", "text", "a list": for messages.
std::string_view type_name(const ConfigValue& value);

}  // namespace tightloop
