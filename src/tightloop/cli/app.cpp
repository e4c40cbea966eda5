#include "tightloop/cli/app.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tightloop/core/json.h"
#include "tightloop/io/toml_config.h"

namespace tightloop::cli {

std::atomic<bool> g_stop{false};

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
    case ErrorKind::shape:
    case ErrorKind::dtype:
    case ErrorKind::unsupported:
    case ErrorKind::data:
      return kUsage;
    case ErrorKind::device:
    case ErrorKind::io:
    case ErrorKind::oom:
      return kEnvironment;
    case ErrorKind::numeric:
      return kJudgedFailed;
    case ErrorKind::interrupted:
      return kInterrupted;
    case ErrorKind::internal:
      return kBug;
  }
  return kBug;
}

void out(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void talk(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void print_error(const Error& error, bool json) {
  if (json) {
    OrderedJson object;
    object["error"] = error.chain().front();
    object["chain"] = error.chain();
    object["kind"] = name_of(error.kind());
    if (!error.hint().empty()) object["hint"] = error.hint();
    object["exit_code"] = exit_code(error.kind());
    out(object.dump() + "\n");
  }
  const std::vector<std::string> chain = error.chain();
  std::string text = "error: " + chain.front() + "\n";
  for (size_t i = 1; i < chain.size(); ++i) text += "  caused by: " + chain[i] + "\n";
  if (!error.hint().empty()) text += "\nhint: " + error.hint() + "\n";
  if (error.kind() == ErrorKind::internal)
    text +=
        "\nThis is a bug in tightloop. Please report it with the output of `tightloop doctor "
        "--json`.\n";
  talk(text);
}

void bind_config(CLI::App& app, Options& options, ConfigSources& sources) {
  app.add_option("-c,--config", sources.files, "TOML file with settings (repeatable)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_option("--set", sources.settings,
                 "one setting, as in the TOML file: optim.matrix_lr=0.02")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  for (const OptionSpec& spec : options.all()) {
    std::string help = spec.help;
    std::string shown_default = spec.default_text;
    if (spec.is_switch) {
      CLI::Option* on = app.add_flag("--" + spec.flag);
      on->description(fmt::format("{} [{}]", help, shown_default == "true" ? "on" : "off"))
          ->group(spec.group)
          ->each([&sources, flag = spec.flag](const std::string& value) {
            sources.flags.emplace_back(flag, value);
          });
      CLI::Option* off = app.add_flag("--no-" + spec.flag);
      off->group("")  // hidden: said once in the footer
          ->each([&sources, flag = spec.flag](const std::string& value) {
            if (value != "true") fail(ErrorKind::usage, "--no-{} takes no value", flag);
            sources.flags.emplace_back(flag, "false");
          });
      continue;
    }
    if (!shown_default.empty()) help += fmt::format(" [{}]", shown_default);
    app.add_option_function<std::string>(
           "--" + spec.flag,
           [&sources, flag = spec.flag](const std::string& value) {
             sources.flags.emplace_back(flag, value);
           },
           help)
        ->type_name(spec.unit.empty() ? "VALUE" : spec.unit)
        ->take_last()
        ->group(spec.group);
  }
  app.allow_extras();
  app.footer("Switches have a --no- form. Settings: TOML file < --set < flag.");
}

void apply_config(Options& options, const ConfigSources& sources) {
  for (const std::string& file : sources.files) {
    for (const ConfigEntry& entry : read_toml(file)) {
      std::string text = to_string(entry.value);
      if (const auto* s = std::get_if<std::string>(&entry.value)) text = *s;
      options.set(entry.key, text, entry.origin);
    }
  }
  for (const std::string& setting : sources.settings) {
    const ConfigEntry entry = parse_setting(setting);
    std::string text = to_string(entry.value);
    if (const auto* s = std::get_if<std::string>(&entry.value)) text = *s;
    options.set(entry.key, text, "--set");
  }
  std::map<std::string, std::string> given;
  for (const auto& [flag, value] : sources.flags) {
    if (given.emplace(flag, value).first->second != value)
      fail(ErrorKind::usage, "--{} is both switched on and off", flag);
    options.set(flag, value, "flag");
  }
}

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1;
}

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(seconds));
  if (total >= 3600)
    return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

std::string human(double value) {
  if (value >= 1e12) return fmt::format("{:.2f}T", value / 1e12);
  if (value >= 1e9) return fmt::format("{:.2f}G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string joined(const std::vector<std::string>& words, std::string_view between) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += between;
    text += word;
  }
  return text;
}

std::string human_bytes(double bytes) {
  if (bytes >= 0x1p30) return fmt::format("{:.2f} GiB", bytes / 0x1p30);
  if (bytes >= 0x1p20) return fmt::format("{:.1f} MiB", bytes / 0x1p20);
  if (bytes >= 0x1p10) return fmt::format("{:.1f} KiB", bytes / 0x1p10);
  return fmt::format("{:.0f} B", bytes);
}

}  // namespace tightloop::cli
