#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace tightloop {

/// 64 bits over `data` that differ after any change within one 8-byte word, and after nearly every
/// other: against faults of disks, not against people. Reads at the rate of memory.
uint64_t checksum64(std::span<const uint8_t> data);
/// Of a file's content, over the checksums of its parts of 1 MiB. Error{io}.
uint64_t checksum_file(const std::string& path);

}  // namespace tightloop
