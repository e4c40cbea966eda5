#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace tightloop {

/// The split rules by name: text is cut into chunks before any merging.
/// nanochat (specs: contractions, words with one leading mark, one or two digits, marks, blanks).
inline constexpr char kNanochatSplit[] =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*)"
    R"(|\s*[\r\n]|\s+(?!\S)|\s+)";
inline constexpr char kGpt2Split[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr char kQwenSplit[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// The rule called `name`: nanochat, gpt2 or qwen. Error{usage} otherwise, with the nearest name.
std::string split_rule(std::string_view name);

/// A compiled split rule (PCRE2, with JIT where the system allows it). Shared between threads; each
/// thread brings its own State.
/// White space is Unicode's White_Space property, as in the engines the published tokenizers were
/// made with (PCRE2's own \s has U+180E too).
class Splitter {
 public:
  class State {
   public:
    explicit State(const Splitter& splitter);
    ~State();
    State(const State&) = delete;
    State& operator=(const State&) = delete;

   private:
    friend class Splitter;
    void release();

    void* match_data_ = nullptr;
    void* context_ = nullptr;
    void* stack_ = nullptr;
    int64_t limited_for_ = 0;  // the length of text that the limit on backtracking is set for
  };

  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };

  /// Error{data} with the place in the expression when it does not compile.
  explicit Splitter(const std::string& rule);
  ~Splitter();
  Splitter(const Splitter&) = delete;
  Splitter& operator=(const Splitter&) = delete;

  const std::string& rule() const { return rule_; }

  /// The first non-empty match at or after byte `from` of `text`, which must be valid UTF-8; an
  /// empty range at the end of the text when there is none. Error{data} when the expression
  /// backtracks too often: more than some steps for each byte, as hostile expressions do.
  Range next(std::string_view text, int64_t from, State& state) const;

 private:
  std::string rule_;
  void* code_ = nullptr;
  bool jit_ = false;
};

}  // namespace tightloop
