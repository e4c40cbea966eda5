#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tightloop {

/// Incremental SHA-256 (FIPS 180-4). Feed bytes with `update`, then call `finish` once.
class Sha256 {
 public:
  Sha256& update(const void* data, size_t bytes);
  Sha256& update(std::string_view bytes) { return update(bytes.data(), bytes.size()); }
  /// The digest of everything fed so far. The object must not be used afterwards.
  std::array<uint8_t, 32> finish();
  /// `finish` as 64 lower-case hexadecimal digits.
  std::string finish_hex();

 private:
  void compress(const uint8_t* block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t used_ = 0;
  uint64_t total_bytes_ = 0;
};

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
std::string sha256_hex(std::string_view bytes);

}  // namespace tightloop
