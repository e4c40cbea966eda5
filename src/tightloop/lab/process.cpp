#include "tightloop/lab/process.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"

extern char** environ;

namespace tightloop {
namespace {

using Clock = std::chrono::steady_clock;  // a wall clock that jumps must not end a run

constexpr size_t kLongestLine = 1 << 20;

/// What posix_spawn wants, freed with its scope.
struct Spawn {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  Spawn() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~Spawn() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  Spawn(const Spawn&) = delete;
  Spawn& operator=(const Spawn&) = delete;
};

pid_t start(const ChildOptions& options, int out) {
  Spawn spawn;
  posix_spawn_file_actions_addopen(&spawn.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&spawn.actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&spawn.actions, STDERR_FILENO, options.log.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawnattr_setpgroup(&spawn.attributes, 0);
  posix_spawnattr_setflags(&spawn.attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<std::string> words{options.program};
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  std::string passive = "OMP_WAIT_POLICY=passive";
  if (std::getenv("OMP_WAIT_POLICY") == nullptr && std::getenv("GOMP_SPINCOUNT") == nullptr)
    environment.push_back(passive.data());
  environment.push_back(nullptr);
  pid_t pid = 0;
  const int code = posix_spawn(&pid, options.program.c_str(), &spawn.actions, &spawn.attributes,
                               argv.data(), environment.data());
  if (code != 0) fail_errno(code, "start", options.program);
  return pid;
}

}  // namespace

ChildResult run_child(const ChildOptions& options,
                      const std::function<bool(std::string_view)>& on_line,
                      const std::atomic<bool>& stop) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail_errno(errno, "make a pipe for", options.program);
  const FileDescriptor from(ends[0]);
  FileDescriptor to(ends[1]);
  const pid_t pid = start(options, to.get());
  to.close();

  ChildResult result;
  bool enough = false, asked_to_stop = false;
  std::string pending;
  char buffer[1 << 16];
  Clock::time_point heard = Clock::now();
  while (true) {
    if ((enough || stop.load()) && !asked_to_stop) {
      asked_to_stop = true;
      kill(pid, SIGTERM);
    }
    pollfd waiting{from.get(), POLLIN, 0};
    if (poll(&waiting, 1, 100) > 0) {
      const ssize_t n = read(from.get(), buffer, sizeof buffer);
      if (n == 0) break;
      if (n > 0) {
        heard = Clock::now();
        pending.append(buffer, static_cast<size_t>(n));
        size_t begin = 0;
        for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1)
          enough |= !on_line(std::string_view(pending).substr(begin, end - begin));
        pending.erase(0, begin);
        if (pending.size() > kLongestLine) pending.clear();
      }
    }
    const double silent = std::chrono::duration<double>(Clock::now() - heard).count();
    if (options.silence_s > 0.0 && silent > options.silence_s && !result.timed_out) {
      result.timed_out = true;
      kill(-pid, SIGKILL);
    }
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

}  // namespace tightloop
