#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/report/report.h"

extern char** environ;

namespace tightloop {
namespace {

/// A file that is removed in the end.
struct Temporary {
  std::string path;
  ~Temporary() { ::unlink(path.c_str()); }
};

}  // namespace

void write_png(const std::string& svg, const std::string& path, int width) {
  const Temporary input{fmt::format("{}.{}.svg", path, ::getpid())};
  const Temporary output{fmt::format("{}.{}.png", path, ::getpid())};
  const Temporary messages{fmt::format("{}.{}.txt", path, ::getpid())};
  write_file_atomically(input.path, svg);

  std::string arguments[] = {"rsvg-convert",
                             "--format=png",
                             "--keep-aspect-ratio",
                             "--width=" + std::to_string(width),
                             "--output=" + output.path,
                             "--",
                             input.path};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, messages.path.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT)
    throw Error(
        ErrorKind::unsupported,
        fmt::format("{}: a PNG needs the program rsvg-convert, which is not installed", path))
        .with_hint("`apt-get install librsvg2-bin`, or write the SVG instead");
  if (error != 0) fail_errno(error, "run rsvg-convert for", path);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) fail_errno(errno, "wait for rsvg-convert of", path);
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    std::string text = read_file(messages.path, 1 << 16);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    fail(ErrorKind::io, "{}: rsvg-convert failed: {}", path,
         text.empty() ? fmt::format("status {}", status) : text);
  }
  write_file_atomically(path, read_file(output.path));
}

}  // namespace tightloop
