#include "tightloop/core/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace tightloop {
namespace {

std::string without_underscores(std::string_view text) {
  std::string clean;
  for (char c : text) {
    if (c != '_') clean += c;
  }
  return clean;
}

void check_range(double value, const Range& range) {
  if (value >= range.low && value <= range.high) return;
  if (std::isinf(range.high))
    fail(ErrorKind::usage, "{} is too small: expected at least {}", value, range.low);
  if (std::isinf(range.low))
    fail(ErrorKind::usage, "{} is too large: expected at most {}", value, range.high);
  fail(ErrorKind::usage, "{} is out of range: expected {} to {}", value, range.low, range.high);
}

std::string shown(double value) {
  return fmt::format("{}", value);
}

}  // namespace

double parse_number(std::string_view text) {
  const std::string clean = without_underscores(text);
  double value = 0.0;
  const auto [end, error] = std::from_chars(clean.data(), clean.data() + clean.size(), value);
  if (error != std::errc() || end != clean.data() + clean.size() || clean.empty())
    fail(ErrorKind::usage, "'{}' is not a number", text);
  if (std::isnan(value)) fail(ErrorKind::usage, "'{}' is not a usable number", text);
  return value;
}

int64_t parse_integer(std::string_view text) {
  std::string clean = without_underscores(text);
  double factor = 1.0;
  if (!clean.empty()) {
    switch (clean.back()) {
      case 'k':
        factor = 1e3;
        break;
      case 'm':
        factor = 1e6;
        break;
      case 'g':
        factor = 1e9;
        break;
      default:
        break;
    }
    if (factor > 1.0) clean.pop_back();
  }
  int64_t exact = 0;
  const auto [end, error] = std::from_chars(clean.data(), clean.data() + clean.size(), exact);
  if (error == std::errc() && end == clean.data() + clean.size() && factor == 1.0) return exact;
  double value = 0.0;
  try {
    value = parse_number(clean) * factor;
  } catch (const Error&) {
    fail(ErrorKind::usage, "'{}' is not a whole number", text);
  }
  if (value != std::floor(value) || std::abs(value) > 9e15)
    fail(ErrorKind::usage, "'{}' is not a whole number", text);
  return static_cast<int64_t>(value);
}

bool parse_bool(std::string_view text) {
  if (text == "true" || text == "1" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "0" || text == "no" || text == "off") return false;
  fail(ErrorKind::usage, "'{}' is neither true nor false", text);
}

void Options::push(OptionSpec spec) {
  spec.group = group_;
  spec.default_text = spec.get();
  TL_CHECK(find(spec.flag) == nullptr && find(spec.key) == nullptr);
  options_.push_back(std::move(spec));
}

void Options::add(std::string flag,
                  std::string key,
                  int64_t* field,
                  std::string unit,
                  std::string help,
                  Range range) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set =
            [field, range](const std::string& text) {
              const int64_t value = parse_integer(text);
              check_range(static_cast<double>(value), range);
              *field = value;
            },
        .get = [field] { return std::to_string(*field); }});
}

void Options::add(std::string flag,
                  std::string key,
                  double* field,
                  std::string unit,
                  std::string help,
                  Range range) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set =
            [field, range](const std::string& text) {
              const double value = parse_number(text);
              check_range(value, range);
              *field = value;
            },
        .get = [field] { return shown(*field); }});
}

void Options::add(
    std::string flag, std::string key, std::string* field, std::string unit, std::string help) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set = [field](const std::string& text) { *field = text; },
        .get = [field] { return *field; }});
}

void Options::add(std::string flag, std::string key, bool* field, std::string help) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .help = std::move(help),
        .is_switch = true,
        .set = [field](const std::string& text) { *field = parse_bool(text); },
        .get = [field] { return std::string(*field ? "true" : "false"); }});
}

void Options::add(std::string flag,
                  std::string key,
                  std::optional<int64_t>* field,
                  std::string unit,
                  std::string help,
                  Range range) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set =
            [field, range](const std::string& text) {
              if (text == "none") {
                field->reset();
                return;
              }
              const int64_t value = parse_integer(text);
              check_range(static_cast<double>(value), range);
              *field = value;
            },
        .get = [field] { return *field ? std::to_string(**field) : std::string(); }});
}

void Options::add(std::string flag,
                  std::string key,
                  std::optional<double>* field,
                  std::string unit,
                  std::string help,
                  Range range) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set =
            [field, range](const std::string& text) {
              if (text == "none") {
                field->reset();
                return;
              }
              const double value = parse_number(text);
              check_range(value, range);
              *field = value;
            },
        .get = [field] { return *field ? shown(**field) : std::string(); }});
}

void Options::add(std::string flag,
                  std::string key,
                  std::optional<std::string>* field,
                  std::string unit,
                  std::string help) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set =
            [field](const std::string& text) {
              if (text == "none")
                field->reset();
              else
                *field = text;
            },
        .get = [field] { return field->value_or(""); }});
}

void Options::add_custom(std::string flag,
                         std::string key,
                         std::string unit,
                         std::string help,
                         std::function<void(const std::string&)> set,
                         std::function<std::string()> get) {
  push({.flag = std::move(flag),
        .key = std::move(key),
        .unit = std::move(unit),
        .help = std::move(help),
        .set = std::move(set),
        .get = std::move(get)});
}

const OptionSpec* Options::find(std::string_view name) const {
  for (const OptionSpec& spec : options_) {
    if (spec.flag == name || spec.key == name) return &spec;
  }
  return nullptr;
}

bool Options::is_set(std::string_view flag) const {
  const OptionSpec* spec = find(flag);
  return spec != nullptr && spec->origin != "default";
}

void Options::refuse(std::string flag, std::string why) {
  refused_.emplace_back(std::move(flag), std::move(why));
}

void Options::set(std::string_view name, const std::string& value, const std::string& origin) {
  OptionSpec* spec = const_cast<OptionSpec*>(find(name));
  for (const auto& [flag, why] : refused_) {
    if (flag == name) fail(ErrorKind::unsupported, "--{} is not available yet: {}", flag, why);
  }
  if (spec == nullptr) {
    std::vector<std::string> names;
    for (const OptionSpec& s : options_) {
      names.push_back(s.key);
      names.push_back(s.flag);
    }
    const std::string near = nearest_name(name, names);
    Error error(ErrorKind::usage, fmt::format("unknown option '{}' ({})", name, origin));
    error.with_hint(near.empty() ? std::string("`tightloop config show` lists every setting")
                                 : fmt::format("did you mean '{}'?", near));
    throw error;
  }
  try {
    spec->set(value);
  } catch (const Error& e) {
    const std::string place = origin == "flag" ? "" : fmt::format(" ({})", origin);
    throw Error(ErrorKind::usage, fmt::format("--{}{}: {}", spec->flag, place, e.message()))
        .with_hint(e.hint())
        .with_hint(fmt::format(
            "--{} {}: {}{}", spec->flag, spec->unit.empty() ? "VALUE" : spec->unit, spec->help,
            spec->default_text.empty() ? "" : fmt::format(" [{}]", spec->default_text)));
  }
  spec->origin = origin;
}

}  // namespace tightloop
