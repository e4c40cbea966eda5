#define PCRE2_CODE_UNIT_WIDTH 8
#include "tightloop/text/split.h"

#include <algorithm>
#include <array>
#include <limits>

#include <pcre2.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

/// Unicode's White_Space property, as the inside of a character class.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// The rule with \s and \S (outside classes) and \s (inside them) spelled out.
std::string with_unicode_white_space(const std::string& rule) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < rule.size(); ++i) {
    const char c = rule[i];
    if (c == '\\' && i + 1 < rule.size()) {
      const char escaped = rule[++i];
      if (escaped == 's') {
        out += in_class ? std::string(kWhiteSpace) : "[" + std::string(kWhiteSpace) + "]";
      } else if (escaped == 'S' && !in_class) {
        out += "[^" + std::string(kWhiteSpace) + "]";
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (i + 1 < rule.size() && rule[i + 1] == '^') out += rule[++i];
      if (i + 1 < rule.size() && rule[i + 1] == ']') out += rule[++i];  // a literal ']'
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

std::string split_rule(std::string_view name) {
  if (name == "nanochat") return kNanochatSplit;
  if (name == "gpt2") return kGpt2Split;
  if (name == "qwen") return kQwenSplit;
  const std::string near = nearest_name(name, {"nanochat", "gpt2", "qwen"});
  fail(ErrorKind::usage, "unknown split rule \"{}\": expected nanochat, gpt2 or qwen{}", name,
       near.empty() ? "" : "; did you mean " + near + "?");
}

Splitter::State::State(const Splitter& splitter) {
  match_data_ = pcre2_match_data_create(1, nullptr);
  auto* context = pcre2_match_context_create(nullptr);
  context_ = context;
  if (splitter.jit_) stack_ = pcre2_jit_stack_create(32 << 10, 4 << 20, nullptr);
  if (match_data_ == nullptr || context == nullptr || (splitter.jit_ && stack_ == nullptr)) {
    release();
    fail(ErrorKind::oom, "no memory for the state of a split rule");
  }
  if (stack_ != nullptr)
    pcre2_jit_stack_assign(context, nullptr, static_cast<pcre2_jit_stack*>(stack_));
}

void Splitter::State::release() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_jit_stack_free(static_cast<pcre2_jit_stack*>(stack_));
}

Splitter::State::~State() {
  release();
}

Splitter::Splitter(const std::string& rule) : rule_(rule) {
  constexpr size_t kMostBytes = 16 << 10;
  if (rule.size() > kMostBytes)
    fail(ErrorKind::data, "split rule of {} bytes, expected at most {}", rule.size(), kMostBytes);
  const std::string spelled = with_unicode_white_space(rule);
  int error = 0;
  PCRE2_SIZE at = 0;
  constexpr uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
  auto* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(), kOptions,
                             &error, &at, nullptr);
  if (code == nullptr)
    fail(ErrorKind::data, "split rule \"{}\" is not a regular expression: {} near \"{}\"", rule,
         message_of(error), spelled.substr(std::min<size_t>(at, spelled.size()), 20));
  jit_ = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  code_ = code;
}

Splitter::~Splitter() {
  pcre2_code_free(static_cast<pcre2_code*>(code_));
}

Splitter::Range Splitter::next(std::string_view text, int64_t from, State& state) const {
  const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto* const code = static_cast<const pcre2_code*>(code_);
  auto* const match_data = static_cast<pcre2_match_data*>(state.match_data_);
  auto* const context = static_cast<pcre2_match_context*>(state.context_);
  const auto size = static_cast<int64_t>(text.size());
  if (size > state.limited_for_) {
    // Long runs of blanks are walked back once or twice by the published rules.
    constexpr int64_t kStepsPerByte = 8, kLeastSteps = 10'000'000;
    constexpr int64_t kMost = std::numeric_limits<uint32_t>::max();
    state.limited_for_ = std::max(size, kLeastSteps / kStepsPerByte);
    pcre2_set_match_limit(
        context, static_cast<uint32_t>(std::min(kMost, state.limited_for_ * kStepsPerByte)));
  }
  while (from < size) {
    const auto start = static_cast<PCRE2_SIZE>(from);
    const int found =
        jit_ ? pcre2_jit_match(code, subject, text.size(), start, 0, match_data, context)
             : pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, match_data,
                           context);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      fail(ErrorKind::data, "split rule \"{}\" gave up at byte {} of {}: {}", rule_, from, size,
           message_of(found));
    const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(match_data);
    const auto begin = static_cast<int64_t>(range[0]), end = static_cast<int64_t>(range[1]);
    if (begin >= from && end > begin) return {begin, end};
    // An empty match (or one moved by \K): go on behind the next character.
    ++from;
    while (from < size && (static_cast<uint8_t>(text[static_cast<size_t>(from)]) & 0xc0) == 0x80)
      ++from;
  }
  return {size, size};
}

}  // namespace tightloop
