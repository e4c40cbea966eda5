#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/error.h"

namespace tightloop {

/// Allowed values of a number, inclusive.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};

/// One option, declared once: it yields the flag, the TOML key, the help line and the record.
struct OptionSpec {
  std::string flag;   // "matrix-lr": written --matrix-lr
  std::string key;    // "optim.matrix_lr"
  std::string group;  // heading in the help
  std::string unit;   // "tokens", "steps", "" for none
  std::string help;
  bool is_switch = false;    // --x / --no-x
  std::string default_text;  // as the user would write it; empty: not set
  std::string origin = "default";
  std::function<void(const std::string&)> set;  // Error{usage} without the flag's name
  std::function<std::string()> get;
};

/// The options of a command: fields of plain structs, bound by name. Values are text until they
/// reach their field, so flags, TOML files and --set share one parser.
class Options {
 public:
  void group(std::string name) { group_ = std::move(name); }
  void add(std::string flag,
           std::string key,
           int64_t* field,
           std::string unit,
           std::string help,
           Range range = {});
  void add(std::string flag,
           std::string key,
           double* field,
           std::string unit,
           std::string help,
           Range range = {});
  void add(
      std::string flag, std::string key, std::string* field, std::string unit, std::string help);
  /// A switch: --flag and --no-flag, true or false in TOML.
  void add(std::string flag, std::string key, bool* field, std::string help);
  /// Not set until given; "none" unsets.
  void add(std::string flag,
           std::string key,
           std::optional<int64_t>* field,
           std::string unit,
           std::string help,
           Range range = {});
  void add(std::string flag,
           std::string key,
           std::optional<double>* field,
           std::string unit,
           std::string help,
           Range range = {});
  void add(std::string flag,
           std::string key,
           std::optional<std::string>* field,
           std::string unit,
           std::string help);
  /// Any other type, through its own parser and printer.
  void add_custom(std::string flag,
                  std::string key,
                  std::string unit,
                  std::string help,
                  std::function<void(const std::string&)> set,
                  std::function<std::string()> get);

  /// A name that is known, but whose feature is not there: setting it is Error{unsupported}.
  void refuse(std::string flag, std::string why);

  /// Sets an option by its TOML key ("optim.matrix_lr") or by its flag's name ("matrix-lr").
  /// Error{usage} names the option, the value, where it came from and what was expected; an unknown
  /// name comes with the nearest one.
  void set(std::string_view key_or_flag, const std::string& value, const std::string& origin);

  const std::vector<OptionSpec>& all() const { return options_; }
  const OptionSpec* find(std::string_view key_or_flag) const;
  /// Whether anything but the default has set it.
  bool is_set(std::string_view flag) const;

 private:
  void push(OptionSpec spec);

  std::string group_;
  std::vector<OptionSpec> options_;
  std::vector<std::pair<std::string, std::string>> refused_;
};

/// The whole text as a number. Accepts 1e6, 512k, 20m, 1g suffixes for integers (powers of 1000)
/// and underscores between digits. Error{usage}.
int64_t parse_integer(std::string_view text);
double parse_number(std::string_view text);
bool parse_bool(std::string_view text);

}  // namespace tightloop
