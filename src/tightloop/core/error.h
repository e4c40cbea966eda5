#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace tightloop {

/// What went wrong, in the terms a caller acts on. `cli` maps each kind to an exit code.
enum class ErrorKind {
  usage,        // a flag, key or argument the user gave
  shape,        // tensor shapes that do not fit
  dtype,        // element types that do not fit
  device,       // the device is missing or wrong
  unsupported,  // valid, but not available here
  io,           // the operating system refused: open, read, write, rename, disk full
  data,         // a file's content is wrong: truncated, foreign, corrupt, out of range
  oom,          // memory
  numeric,      // a non-finite value where a finite one must be
  interrupted,  // the user asked to stop
  internal,     // a bug
};

std::string_view name_of(ErrorKind kind);

/// The one exception type. `what()` is the innermost message; every layer that lets it pass may add
/// one line of context with `with_context`; `with_hint` adds the next command to try.
class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  const char* what() const noexcept override { return message_.c_str(); }
  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  /// Outermost line first; the message itself is the last line of the chain.
  std::vector<std::string> chain() const;
  const std::string& hint() const { return hint_; }

  Error& with_context(std::string line) {
    context_.push_back(std::move(line));
    return *this;
  }
  /// Keeps the first hint: the place nearest to the fault knows best.
  Error& with_hint(std::string hint) {
    if (hint_.empty()) hint_ = std::move(hint);
    return *this;
  }

 private:
  ErrorKind kind_;
  std::string message_;
  std::vector<std::string> context_;
  std::string hint_;
};

/// Throws Error{kind, formatted message}: `fail(ErrorKind::shape, "gamma has {} columns", n)`.
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(kind, fmt::format(text, std::forward<Args>(args)...));
}

/// The candidate nearest to `word` by edit distance, or empty when none is near enough to suggest.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace tightloop

/// An impossible state: our bug, never the user's.
#define TL_CHECK(condition)                                                                    \
  do {                                                                                         \
    if (!(condition))                                                                          \
      ::tightloop::fail(::tightloop::ErrorKind::internal, "{}:{}: {} does not hold", __FILE__, \
                        __LINE__, #condition);                                                 \
  } while (false)
