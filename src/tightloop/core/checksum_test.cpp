#include "tightloop/core/checksum.h"

#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace tightloop {
namespace {

TEST(Checksum, EveryFlippedBitAndEveryLengthShows) {
  std::vector<uint8_t> data(77);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 37);
  std::set<uint64_t> seen{checksum64(data)};
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    const auto flip = static_cast<uint8_t>(1u << (bit % 8));
    data[bit / 8] ^= flip;
    EXPECT_TRUE(seen.insert(checksum64(data)).second) << "bit " << bit;
    data[bit / 8] ^= flip;
  }
  for (size_t size = 0; size < data.size(); ++size)
    EXPECT_TRUE(seen.insert(checksum64({data.data(), size})).second) << "size " << size;
}

TEST(Checksum, StaysTheSame) {
  // Stored in checkpoints: must not change between versions.
  const std::vector<uint8_t> data(40, 7);
  EXPECT_EQ(checksum64(data), 11995889187751454652u);
}

}  // namespace
}  // namespace tightloop
