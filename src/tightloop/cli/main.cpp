#include <csignal>
#include <cstdlib>
#include <exception>
#include <new>

#include "tightloop/cli/app.h"
#include "tightloop/core/build_info.h"
#include "tightloop/core/log.h"

namespace tightloop::cli {
namespace {

constexpr std::string_view kWelcome =
    R"(tightloop trains small GPTs to a loss target and proves every speed-up.

  tightloop train --preset quick        learn a small story grammar in a minute, on this CPU
  tightloop explain --preset quick      the Program, its rewrites and memory, before anything runs
  tightloop generate runs/NAME          text from what was trained
  tightloop doctor                      what this machine has, with a self-test

`tightloop --help` lists all commands; `tightloop COMMAND --help` explains one.
)";

/// The first signal asks for a clean end; a second Ctrl-C ends the process at once.
void on_signal(int signal) {
  if (g_stop.exchange(true) && signal == SIGINT) std::_Exit(kInterrupted);
}

/// The nearest known flag to an unknown argument.
int refuse_extras(const CLI::App& app, bool json) {
  const std::vector<std::string> extras = app.remaining();
  if (extras.empty()) return -1;
  const std::string word = extras[0].substr(0, extras[0].find('='));
  if (!word.starts_with("-")) {
    print_error(Error(ErrorKind::usage, fmt::format("unexpected argument '{}'", word))
                    .with_hint(fmt::format("`tightloop {} --help`", app.get_name())),
                json);
    return kUsage;
  }
  if (word == "--core-metric-every") {
    print_error(Error(ErrorKind::unsupported,
                      "--core-metric-every is not available yet: the CORE tasks are not "
                      "implemented"),
                json);
    return kUsage;
  }
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  const std::string near = nearest_name(word, flags);
  Error error(ErrorKind::usage, fmt::format("unknown flag '{}' for '{}'", word, app.get_name()));
  error.with_hint(near.empty() ? fmt::format("`tightloop {} --help` lists them", app.get_name())
                               : fmt::format("did you mean '{}'?", near));
  print_error(error, json);
  return kUsage;
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app{"Trains small GPTs to a loss target in the least time, and proves every speed-up."};
  app.name("tightloop");
  app.set_version_flag("--version",
                       fmt::format("tightloop {} ({})", build_info().version, build_info().commit));
  app.footer(
      "Exit codes: 0 done; 1 ran, but what was judged failed; 2 usage or configuration;\n"
      "3 environment (out of memory, disk full); 4 bug; 130 interrupted after a clean checkpoint.");
  Runner run;
  add_train(app, run);
  std::string typed = "tightloop";
  for (int i = 1; i < argc; ++i) typed += std::string(" ") + argv[i];
  add_lab(app, run, typed);
  add_eval(app, run);
  add_generate(app, run);
  add_explain(app, run);
  add_check(app, run);
  add_data(app, run);
  add_tokenizer(app, run);
  add_bench(app, run);
  add_doctor(app, run);
  add_config(app, run);

  if (argc == 1) {
    out(kWelcome);
    return kDone;
  }
  bool json = false;
  for (int i = 1; i < argc; ++i) json = json || std::string_view(argv[i]) == "--json";
  set_log_sink([](LogLevel level, std::string_view text) {
    if (level == LogLevel::warning) talk(fmt::format("warning: {}\n", text));
  });
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its size limit is an error of write()
  try {
    app.parse(argc, argv);
    const CLI::App* leaf = &app;
    while (!leaf->get_subcommands().empty()) leaf = leaf->get_subcommands()[0];
    if (const int code = refuse_extras(*leaf, json); code >= 0) return code;
    if (!run) {
      out(leaf->help());
      return kUsage;
    }
    return run();
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    Error error(ErrorKind::usage, e.what());
    const CLI::App* leaf = &app;
    std::string command = "tightloop";
    while (!leaf->get_subcommands().empty()) {
      leaf = leaf->get_subcommands()[0];
      command += " " + leaf->get_name();
    }
    if (leaf == &app)
      error.with_hint(
          "`tightloop --help` lists the commands and `tightloop COMMAND --help` its flags");
    else
      error.with_hint(
          fmt::format("`{} --help` says what it takes{}", command,
                      leaf->get_footer().starts_with("Example") ? ". " + leaf->get_footer() : ""));
    print_error(error, json);
    return kUsage;
  } catch (const Error& e) {
    print_error(e, json);
    return exit_code(e.kind());
  } catch (const std::bad_alloc&) {
    const Error error(ErrorKind::oom, "memory ran out");
    print_error(error, json);
    return exit_code(error.kind());
  } catch (const std::exception& e) {
    print_error(Error(ErrorKind::internal, e.what()), json);
    return kBug;
  }
}

}  // namespace tightloop::cli

int main(int argc, char** argv) {
  return tightloop::cli::run_command_line(argc, argv);
}
