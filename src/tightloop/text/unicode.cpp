#include "tightloop/text/unicode.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <utf8proc.h>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

bool is_continuation(uint8_t byte) {
  return (byte & 0xc0) == 0x80;
}

/// Length of the valid UTF-8 sequence at `p`, 0 when there is none.
int sequence_length(const uint8_t* p, const uint8_t* end) {
  const uint8_t lead = *p;
  if (lead < 0x80) return 1;
  const auto left = end - p;
  if (lead < 0xc2) return 0;
  if (lead < 0xe0) return left >= 2 && is_continuation(p[1]) ? 2 : 0;
  if (lead < 0xf0) {
    if (left < 3 || !is_continuation(p[1]) || !is_continuation(p[2])) return 0;
    if (lead == 0xe0 && p[1] < 0xa0) return 0;   // overlong
    if (lead == 0xed && p[1] >= 0xa0) return 0;  // surrogates
    return 3;
  }
  if (lead > 0xf4 || left < 4) return 0;
  if (!is_continuation(p[1]) || !is_continuation(p[2]) || !is_continuation(p[3])) return 0;
  if (lead == 0xf0 && p[1] < 0x90) return 0;   // overlong
  if (lead == 0xf4 && p[1] >= 0x90) return 0;  // above U+10FFFF
  return 4;
}

/// The code point of a valid sequence of `length` bytes.
uint32_t code_point(const uint8_t* p, int length) {
  switch (length) {
    case 1:
      return p[0];
    case 2:
      return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    case 3:
      return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    default:
      return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
  }
}

struct CodeRange {
  uint32_t first, last;
};

/// Common ranges whose characters all have combining class 0 and NFC_Quick_Check=Yes (Unicode 14
/// and later; UAX #15): they are unchanged by NFC and never join the character before them.
constexpr std::array<CodeRange, 10> kInert = {{{0x0000, 0x02ff},    // Latin
                                               {0x0388, 0x0482},    // Greek, Cyrillic
                                               {0x048a, 0x052f},    // Cyrillic
                                               {0x05d0, 0x05ea},    // Hebrew letters
                                               {0x2002, 0x20cf},    // marks, quotes, dashes
                                               {0x2190, 0x2328},    // arrows, mathematics
                                               {0x3041, 0x3096},    // hiragana
                                               {0x30a1, 0x30fe},    // katakana
                                               {0x4e00, 0x9fff},    // ideographs
                                               {0xac00, 0xd7a3}}};  // Hangul syllables

bool is_inert(uint32_t c) {
  if (c < 0x300) return true;
  for (const CodeRange& range : kInert)
    if (c >= range.first && c <= range.last) return true;
  return c >= 0x1f300 && c <= 0x1faff;  // pictographs
}

struct ByteAlphabet {
  std::array<std::string, 256> letter;
  std::array<int16_t, 512> byte_of;  // by code point; -1: not in the alphabet
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet a;
    a.byte_of.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      const uint32_t c = printable ? byte : next++;
      a.byte_of[c] = static_cast<int16_t>(byte);
      if (c < 0x80) {
        a.letter[byte] = {static_cast<char>(c)};
      } else {
        a.letter[byte] = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
      }
    }
    return a;
  }();
  return alphabet;
}

const uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

}  // namespace

int64_t valid_utf8_prefix(std::string_view text) {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  const uint8_t* p = begin;
  while (p < end) {
    if (*p < 0x80) {
      uint64_t word;
      while (end - p >= 8 && (std::memcpy(&word, p, 8), (word & 0x8080808080808080ull) == 0))
        p += 8;
      while (p < end && *p < 0x80) ++p;
      continue;
    }
    const int length = sequence_length(p, end);
    if (length == 0) break;
    p += length;
  }
  return p - begin;
}

std::string_view first_code_points(std::string_view text, int64_t count) {
  if (static_cast<int64_t>(text.size()) <= count) return text;
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  const uint8_t* p = begin;
  for (; count > 0 && p < end; --count) p += std::max(1, sequence_length(p, end));
  return text.substr(0, static_cast<size_t>(p - begin));
}

int64_t count_code_points(std::string_view text) {
  const uint8_t* p = bytes_of(text);
  const uint8_t* const end = p + text.size();
  int64_t count = 0;
  for (; p < end; ++count) p += std::max(1, sequence_length(p, end));
  return count;
}

bool is_surely_nfc(std::string_view text) {
  const uint8_t* p = bytes_of(text);
  const uint8_t* const end = p + text.size();
  while (p < end) {
    uint64_t word;
    while (end - p >= 8 && (std::memcpy(&word, p, 8), (word & 0x8080808080808080ull) == 0)) p += 8;
    if (p == end) break;
    const int length = sequence_length(p, end);
    TL_CHECK(length > 0);
    if (!is_inert(code_point(p, length))) return false;
    p += length;
  }
  return true;
}

void append_nfc(std::string_view text, std::string& out) {
  // NFC changes nothing across the front of an inert character, so only the stretches "inert
  // character, then others up to the next inert one" need the library.
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  const uint8_t* copied = begin;  // everything before it is in `out`
  const uint8_t* previous = begin;
  std::vector<utf8proc_int32_t> points;
  for (const uint8_t* p = begin; p < end;) {
    const int length = sequence_length(p, end);
    TL_CHECK(length > 0);
    if (is_inert(code_point(p, length))) {
      previous = p;
      p += length;
      continue;
    }
    out.append(reinterpret_cast<const char*>(copied), static_cast<size_t>(previous - copied));
    const uint8_t* stop = p;
    while (stop < end) {
      const int n = sequence_length(stop, end);
      TL_CHECK(n > 0);
      if (is_inert(code_point(stop, n))) break;
      stop += n;
    }
    constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    const auto bytes = static_cast<utf8proc_ssize_t>(stop - previous);
    const auto count = utf8proc_decompose(previous, bytes, nullptr, 0, kOptions);
    TL_CHECK(count >= 0);
    points.resize(static_cast<size_t>(count) + 1);  // reencode adds a terminating zero
    TL_CHECK(utf8proc_decompose(previous, bytes, points.data(), count, kOptions) == count);
    const auto written = utf8proc_reencode(points.data(), count, kOptions);
    TL_CHECK(written >= 0);
    out.append(reinterpret_cast<const char*>(points.data()), static_cast<size_t>(written));
    copied = previous = p = stop;
  }
  out.append(reinterpret_cast<const char*>(copied), static_cast<size_t>(end - copied));
}

void append_byte_alphabet(std::string_view bytes, std::string& out) {
  const ByteAlphabet& alphabet = byte_alphabet();
  for (char byte : bytes) out += alphabet.letter[static_cast<uint8_t>(byte)];
}

std::optional<std::string> from_byte_alphabet(std::string_view letters) {
  const ByteAlphabet& alphabet = byte_alphabet();
  const uint8_t* p = bytes_of(letters);
  const uint8_t* const end = p + letters.size();
  std::string bytes;
  bytes.reserve(letters.size());
  while (p < end) {
    const int length = sequence_length(p, end);
    if (length == 0) return std::nullopt;
    const uint32_t c = code_point(p, length);
    if (c >= alphabet.byte_of.size() || alphabet.byte_of[c] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet.byte_of[c]);
    p += length;
  }
  return bytes;
}

}  // namespace tightloop
