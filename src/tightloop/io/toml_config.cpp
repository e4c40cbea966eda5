#include "tightloop/io/toml_config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include <toml++/toml.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/csv.h"

namespace tightloop {
namespace {

constexpr int64_t kMaxTomlBytes = int64_t{1} << 20;
constexpr int kMaxDots = 32;

struct Place {
  uint32_t line = 0;
  uint32_t column = 0;
};

Place place_of(const toml::node& node) {
  return {static_cast<uint32_t>(node.source().begin.line),
          static_cast<uint32_t>(node.source().begin.column)};
}

template <typename... Args>
[[noreturn]] void fail_at(const std::string& name,
                          Place place,
                          fmt::format_string<Args...> text,
                          Args&&... args) {
  throw Error(ErrorKind::data, fmt::format("{}:{}:{}: {}", name, place.line, place.column,
                                           fmt::format(text, std::forward<Args>(args)...)))
      .with_hint(
          "a setting is `[model]`, and below it `depth = 4`; `tightloop config show` lists all");
}

std::optional<ConfigScalar> scalar_of(const toml::node& node) {
  if (const auto* value = node.as_boolean()) return ConfigScalar(value->get());
  if (const auto* value = node.as_integer()) return ConfigScalar(value->get());
  if (const auto* value = node.as_floating_point()) return ConfigScalar(value->get());
  if (const auto* value = node.as_string()) return ConfigScalar(value->get());
  return std::nullopt;
}

ConfigValue value_of(const toml::node& node, const std::string& key, const std::string& name) {
  if (const auto scalar = scalar_of(node))
    return std::visit([](const auto& x) { return ConfigValue(x); }, *scalar);
  const toml::array* list = node.as_array();
  if (list == nullptr)
    fail_at(name, place_of(node),
            "'{}' is a date or time, expected a number, text, boolean or list", key);
  std::vector<ConfigScalar> values;
  for (const toml::node& element : *list) {
    auto scalar = scalar_of(element);
    if (!scalar)
      fail_at(name, place_of(element), "'{}' holds a list, table or date, expected plain values",
              key);
    values.push_back(std::move(*scalar));
  }
  return values;
}

struct Located {
  ConfigEntry entry;
  Place place;
};

void flatten(const toml::table& table,
             const std::string& prefix,
             const std::string& name,
             std::vector<Located>& out) {
  for (const auto& [key, node] : table) {
    const std::string_view text = key.str();
    const Place key_place = {static_cast<uint32_t>(key.source().begin.line),
                             static_cast<uint32_t>(key.source().begin.column)};
    const bool plain = !text.empty() && std::none_of(text.begin(), text.end(), [](char c) {
      return c == '.' || static_cast<unsigned char>(c) < 0x20;
    });
    if (!plain) fail_at(name, key_place, "a key with dots, control characters or no text at all");
    const std::string path = prefix + std::string(text);
    if (const toml::table* inner = node.as_table()) {
      flatten(*inner, path + ".", name, out);
      continue;
    }
    out.push_back({{path, value_of(node, path, name),
                    fmt::format("{}:{}:{}", name, key_place.line, key_place.column)},
                   key_place});
  }
}

/// Refuses a key of so many parts that the nested tables would overflow a stack.
void check_depth(std::string_view text, const std::string& name) {
  uint32_t line = 1;
  int dots = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    // What ends a key starts the count again, and so does an ellipsis, which no key can hold.
    const bool ellipsis = c == '.' && i > 0 && text[i - 1] == '.';
    if (ellipsis || std::string_view("\n=[]{},#").find(c) != std::string_view::npos) dots = 0;
    if (c == '.' && ++dots > kMaxDots)
      fail_at(name, {line, 1}, "a key of more than {} parts", kMaxDots);
  }
}

/// toml++ with its exception turned into ours.
toml::table parse_document(std::string_view text, const std::string& name) {
  try {
    return toml::parse(text, std::string_view(name));
  } catch (const toml::parse_error& error) {
    fail_at(name,
            {static_cast<uint32_t>(error.source().begin.line),
             static_cast<uint32_t>(error.source().begin.column)},
            "not valid TOML: {}", error.description());
  }
}

}  // namespace

std::vector<ConfigEntry> parse_toml(std::string_view text, const std::string& name) {
  if (static_cast<int64_t>(text.size()) > kMaxTomlBytes)
    fail(ErrorKind::data, "{}: file has {} bytes, expected at most {}", name, text.size(),
         kMaxTomlBytes);
  check_depth(text, name);
  std::vector<Located> found;
  flatten(parse_document(text, name), "", name, found);
  std::stable_sort(found.begin(), found.end(), [](const Located& a, const Located& b) {
    return std::pair(a.place.line, a.place.column) < std::pair(b.place.line, b.place.column);
  });
  std::vector<ConfigEntry> entries;
  for (Located& located : found) entries.push_back(std::move(located.entry));
  return entries;
}

std::vector<ConfigEntry> read_toml(const std::string& path) {
  return parse_toml(read_file(path, kMaxTomlBytes), path);
}

ConfigEntry parse_setting(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  const std::string key(assignment.substr(0, equals));
  const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
  });
  if (equals == std::string_view::npos || !plain || key.front() == '.' || key.back() == '.' ||
      key.find("..") != std::string::npos)
    throw Error(ErrorKind::usage, fmt::format("--set '{}': expected key=value", assignment))
        .with_hint("for example `--set optim.matrix_lr=0.02`");
  const std::string text(assignment.substr(equals + 1));
  if (static_cast<int64_t>(text.size()) > kMaxTomlBytes)
    fail(ErrorKind::usage, "--set {}: value of {} bytes", key, text.size());
  if (text.find_first_of("\n\r") == std::string::npos && !text.empty()) {
    try {
      std::vector<ConfigEntry> entries = parse_toml("value = " + text, "--set " + key);
      if (entries.size() == 1 && entries[0].key == "value")
        return {key, std::move(entries[0].value), "--set"};
    } catch (const Error& error) {
      if (text.front() == '"' || text.front() == '\'' || text.front() == '[' || text.front() == '{')
        fail(ErrorKind::usage, "--set {}={}: not a value: {}", key, text, error.what());
    }
  }
  return {key, text, "--set"};
}

std::string to_string(const ConfigValue& value) {
  struct Visitor {
    std::string operator()(bool x) const { return x ? "true" : "false"; }
    std::string operator()(int64_t x) const { return fmt::format("{}", x); }
    std::string operator()(double x) const {
      std::string text = shortest(x);
      const bool whole = text.find_first_not_of("-0123456789") == std::string::npos;
      return whole ? text + ".0" : text;
    }
    std::string operator()(const std::string& x) const {
      std::string out = "\"";
      for (const char c : x) {
        if (c == '"' || c == '\\') {
          out += '\\';
          out += c;
        } else if (c == '\n') {
          out += "\\n";
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
      }
      return out + '"';
    }
    std::string operator()(const std::vector<ConfigScalar>& x) const {
      std::string out = "[";
      for (size_t i = 0; i < x.size(); ++i)
        out += (i == 0 ? "" : ", ") + std::visit(Visitor{}, x[i]);
      return out + ']';
    }
  };
  return std::visit(Visitor{}, value);
}

std::string_view type_name(const ConfigValue& value) {
  constexpr std::string_view kNames[] = {"a boolean", "an integer", "a number", "text", "a list"};
  return kNames[value.index()];
}

}  // namespace tightloop
