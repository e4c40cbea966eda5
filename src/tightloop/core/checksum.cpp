#include "tightloop/core/checksum.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <vector>

#include "tightloop/core/file.h"

namespace tightloop {
namespace {

// Odd: each step is a bijection of the lane, so a changed word cannot go unnoticed.
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;

uint64_t step(uint64_t lane, uint64_t word) {
  const uint64_t x = (lane ^ word) * kFactor;
  return x ^ (x >> 32);
}

}  // namespace

uint64_t checksum64(std::span<const uint8_t> data) {
  uint64_t lanes[4] = {1, 2, 3, 4};
  const uint8_t* at = data.data();
  size_t left = data.size();
  for (; left >= 32; at += 32, left -= 32) {
    uint64_t words[4];
    std::memcpy(words, at, 32);
    for (int i = 0; i < 4; ++i) lanes[i] = step(lanes[i], words[i]);
  }
  for (int i = 0; left > 0; ++i) {
    const size_t n = left < 8 ? left : 8;
    uint64_t word = 0;
    std::memcpy(&word, at, n);
    lanes[i] = step(lanes[i], word);
    at += n, left -= n;
  }
  uint64_t sum = data.size();
  for (const uint64_t lane : lanes) sum = step(sum, lane);
  return sum;
}

uint64_t checksum_file(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) fail_errno(errno, "open", path);
  std::vector<uint8_t> part(size_t{1} << 20);
  uint64_t sum = 0;
  while (true) {
    size_t have = 0;
    while (have < part.size()) {
      const ssize_t got = ::read(file.get(), part.data() + have, part.size() - have);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_errno(errno, "read", path);
      if (got == 0) break;
      have += static_cast<size_t>(got);
    }
    sum = step(sum, checksum64({part.data(), have}));
    if (have < part.size()) return sum;
  }
}

}  // namespace tightloop
