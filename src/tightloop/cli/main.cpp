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

/// The commands that were typed, from the program to the one that runs.
std::vector<const CLI::App*> typed_commands(const CLI::App& app) {
  std::vector<const CLI::App*> commands{&app};
  while (!commands.back()->get_subcommands().empty())
    commands.push_back(commands.back()->get_subcommands()[0]);
  return commands;
}

std::vector<const CLI::App*> commands_of(const CLI::App& group) {
  return group.get_subcommands([](const CLI::App*) { return true; });
}

/// The first line of the footer that is an example, without the word.
std::string example_of(const CLI::App& command) {
  constexpr std::string_view kStart{"Example: "};
  const std::string footer = command.get_footer();
  if (!footer.starts_with(kStart)) return {};
  return footer.substr(kStart.size(), footer.find('\n') - kStart.size());
}

/// What the parser says, in the words of this program.
std::string message_of(const CLI::ParseError& e) {
  const std::string what = e.what();
  // "Could not convert: --steps = x", "--depth: 1 required layers missing"
  constexpr std::string_view kConvert{"Could not convert: "}, kMissing{": 1 required "};
  if (what.starts_with(kConvert)) {
    const size_t equals = what.find(" = ");
    if (equals != std::string::npos)
      return fmt::format("{}: cannot read '{}'",
                         what.substr(kConvert.size(), equals - kConvert.size()),
                         what.substr(equals + 3));
  }
  if (const size_t at = what.find(kMissing); at != std::string::npos && what.ends_with(" missing"))
    return what.substr(0, at) + " needs a value";
  return what;
}

/// What the documents name and this version does not have, and what to use instead.
struct NotYet {
  std::string_view command;  // the one that it belongs to; empty: several
  std::string_view word;
  std::string_view why;
  std::string_view instead;
};

constexpr NotYet kNotYet[]{
    {"train", "--core-metric-every", "the CORE tasks are not implemented",
     "`--eval-every`, the validation loss"},
    {"", "--fused-norm-linear", "no op joins a norm with the linear layer after it",
     "`--fused-rmsnorm`, which joins a norm with the sum before it"},
    {"check", "--bisect", "check names the worst quantity, not the op behind it",
     "`--rewrites none`, then one name at a time, with `--verbose`"},
    {"tightloop", "chat", "models are not trained on conversations",
     "`tightloop generate runs/NAME --prompt TEXT`, which continues a text"},
    {"bench", "decode", "only whole steps and single ops are timed",
     "`tightloop generate runs/NAME`, which says how fast it decoded"},
    {"bench", "compare", "there are no recorded peers",
     "`tightloop bench train --compare REWRITE`, which times a rewrite on and off"},
};

/// Whether `longer` is `shorter` with words before or after it: --train-tokens and --tokens.
bool has_words_of(std::string_view longer, std::string_view shorter) {
  if (!longer.starts_with("--") || !shorter.starts_with("--")) return false;
  const std::string words(shorter.substr(2));
  return longer.ends_with("-" + words) || longer.starts_with("--" + words + "-");
}

/// A word where a command should be, or an argument or flag that the command does not have.
Error unknown_argument(const CLI::App& command, const std::string& name, std::string word) {
  word = word.substr(0, word.find('='));
  const std::string help = fmt::format("`{} --help`", name);
  for (const NotYet& absent : kNotYet) {
    if (word != absent.word || (!absent.command.empty() && command.get_name() != absent.command))
      continue;
    const std::string what = word.starts_with("-") ? word : fmt::format("'{} {}'", name, word);
    return Error(ErrorKind::unsupported,
                 fmt::format("{} is not available yet: {}", what, absent.why))
        .with_hint(fmt::format("use what this version has: {}", absent.instead));
  }
  const bool is_flag = word.starts_with("-");
  std::vector<std::string> known;
  if (is_flag) {
    for (const CLI::Option* option : command.get_options()) {
      for (const std::string& flag : option->get_lnames()) known.push_back("--" + flag);
    }
  } else {
    for (const CLI::App* sub : commands_of(command)) known.push_back(sub->get_name());
    if (known.empty())
      return Error(ErrorKind::usage, fmt::format("unexpected argument '{}' for '{}'", word, name))
          .with_hint(help + " says what it takes");
  }
  std::string near = nearest_name(word, known);
  for (const std::string& flag : known) {
    if (near.empty() && (has_words_of(word, flag) || has_words_of(flag, word))) near = flag;
  }
  return Error(ErrorKind::usage, is_flag ? fmt::format("unknown flag '{}' for '{}'", word, name)
                                         : fmt::format("'{}' is no command of {}", word, name))
      .with_hint(near.empty() ? help + " lists them" : fmt::format("did you mean '{}'?", near));
}

/// A group without its command: what there is, with an example each.
void refuse_group(const CLI::App& group, const std::string& name, bool json) {
  std::string text;
  for (const CLI::App* sub : commands_of(group)) {
    text += fmt::format("  {:<10}  {}\n", sub->get_name(), sub->get_description());
    if (const std::string example = example_of(*sub); !example.empty())
      text += fmt::format("  {:<10}  {}\n", "", example);
  }
  if (const std::string example = example_of(group); !example.empty())
    text += fmt::format("\nFor example: {}\n", example);
  print_error(Error(ErrorKind::usage, fmt::format("'{}' needs one of its commands", name)), json);
  talk(fmt::format("\nusage: {} COMMAND ...\n\n{}\n`{} COMMAND --help` explains one.\n", name, text,
                   name));
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app{"Trains small GPTs to a loss target in the least time, and proves every speed-up."};
  app.name("tightloop");
  app.set_version_flag("--version",
                       fmt::format("tightloop {} ({})", build_info().version, build_info().commit));
  app.footer(std::string(kExitCodes));
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
  // What no command knows is refused here, with the nearest name.
  app.allow_extras();
  for (CLI::App* group : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!commands_of(*group).empty()) group->allow_extras()->require_subcommand(0, 1);
  }
  std::string command = "tightloop";
  const auto refuse_unknown = [&] {
    command.clear();
    for (const CLI::App* level : typed_commands(app)) {
      command += (command.empty() ? "" : " ") + level->get_name();
      const std::vector<std::string> extras = level->remaining();
      if (!extras.empty()) throw unknown_argument(*level, command, extras[0]);
    }
  };
  set_log_sink([](LogLevel level, std::string_view text) {
    if (level == LogLevel::warning) talk(fmt::format("warning: {}\n", text));
  });
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its size limit is an error of write()
  try {
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success&) {
      throw;  // --help, --version
    } catch (const CLI::ParseError& e) {
      refuse_unknown();  // a misspelt flag explains what is missing
      const std::string example = example_of(*typed_commands(app).back());
      throw Error(ErrorKind::usage, message_of(e))
          .with_hint(fmt::format("`{} --help` says what it takes{}", command,
                                 example.empty() ? "" : ". Example: " + example));
    }
    refuse_unknown();
    if (!run) {
      refuse_group(*typed_commands(app).back(), command, json);
      return kUsage;
    }
    return run();
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
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
