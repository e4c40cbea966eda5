#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tightloop {

/// Length of the longest prefix of `text` that is valid UTF-8 (no surrogates, no overlong forms,
/// at most U+10FFFF).
int64_t valid_utf8_prefix(std::string_view text);

/// The first `count` code points of `text`; a byte that starts no valid sequence counts as one.
std::string_view first_code_points(std::string_view text, int64_t count);

/// Number of code points, counted as `first_code_points` does.
int64_t count_code_points(std::string_view text);

/// True when a quick scan proves that valid UTF-8 `text` is in normalisation form C already.
bool is_surely_nfc(std::string_view text);

/// `text` (valid UTF-8) in normalisation form C, appended to `out`.
void append_nfc(std::string_view text, std::string& out);

/// GPT-2's printable alphabet for bytes: 33..126, 161..172 and 174..255 stand for themselves, the
/// other 68 bytes become U+0100, U+0101, … in rising order. Appends the letters (UTF-8) of `bytes`.
void append_byte_alphabet(std::string_view bytes, std::string& out);

/// The bytes that letters of GPT-2's alphabet stand for; empty when `letters` has another one.
std::optional<std::string> from_byte_alphabet(std::string_view letters);

}  // namespace tightloop
