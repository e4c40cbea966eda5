#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/options.h"

/// What every subcommand shares. The only layer that prints: data to stdout, talk to stderr.
namespace tightloop::cli {

// Exit codes, printed in the help.
inline constexpr int kDone{0};
inline constexpr int kJudgedFailed{1};  // ran, but what was judged failed
inline constexpr int kUsage{2};         // usage or configuration
inline constexpr int kEnvironment{3};   // no device, out of memory, disk full
inline constexpr int kBug{4};
inline constexpr int kInterrupted{130};  // after a clean checkpoint
inline constexpr std::string_view kExitCodes{
    "Exit codes: 0 done; 1 ran, but what was judged failed; 2 usage or configuration;\n"
    "3 environment (out of memory, disk full); 4 bug; 130 interrupted after a clean checkpoint."};
int exit_code(ErrorKind kind);

/// Set by SIGINT and SIGTERM; a second signal ends the process at once.
extern std::atomic<bool> g_stop;

/// `error: what`, the cause chain, then `hint:`. As JSON on stdout when `json`.
void print_error(const Error& error, bool json);

/// Settings as the user gave them: TOML files, then --set, then flags, whatever their place.
struct ConfigSources {
  std::vector<std::string> files;
  std::vector<std::string> settings;
  std::vector<std::pair<std::string, std::string>> flags;  // flag name, value
};
/// Adds -c, --set and every option of the table as a flag.
void bind_config(CLI::App& app, Options& options, ConfigSources& sources);
void apply_config(Options& options, const ConfigSources& sources);

bool stderr_is_terminal();
/// "1:23", "2:03:04".
std::string duration(double seconds);
/// "812", "1.2k", "3.4M".
std::string human(double value);
/// "1.5 MiB".
std::string human_bytes(double bytes);

/// The words with `between` between them.
std::string joined(const std::vector<std::string>& words, std::string_view between);

/// Prints to stdout / stderr.
void out(std::string_view text);
void talk(std::string_view text);

// The subcommands. Each adds itself to `app` and returns what runs it.
using Runner = std::function<int()>;
void add_train(CLI::App& app, Runner& runner);
/// `command_line`: as typed, for the record.
void add_lab(CLI::App& app, Runner& runner, const std::string& command_line);
void add_eval(CLI::App& app, Runner& runner);
void add_generate(CLI::App& app, Runner& runner);
void add_explain(CLI::App& app, Runner& runner);
void add_check(CLI::App& app, Runner& runner);
void add_data(CLI::App& app, Runner& runner);
void add_tokenizer(CLI::App& app, Runner& runner);
void add_bench(CLI::App& app, Runner& runner);
void add_doctor(CLI::App& app, Runner& runner);
void add_config(CLI::App& app, Runner& runner);

}  // namespace tightloop::cli
