#include "tightloop/io/host_info.h"

#include <cstring>
#include <sys/mman.h>

#include <gtest/gtest.h>

#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

TEST(HostInfo, FactsArePlausible) {
  const HostInfo info = host_info();
  EXPECT_FALSE(info.hostname.empty());
  EXPECT_FALSE(info.cpu_model.empty());
  EXPECT_GE(info.logical_cpus, 1);
  EXPECT_GT(info.memory_total_bytes, int64_t{64} << 20);
  EXPECT_GT(info.memory_available_bytes, 0);
  EXPECT_LE(info.memory_available_bytes, info.memory_total_bytes);
  for (const CacheInfo& cache : info.caches) {
    EXPECT_GE(cache.level, 1);
    EXPECT_GT(cache.bytes, 1000);
    EXPECT_GE(cache.shared_by_cpus, 1);
  }
}

TEST(HostInfo, ResidentMemoryFollowsUse) {
  const int64_t before = resident_bytes();
  ASSERT_GT(before, 0);
  constexpr size_t kBytes = size_t{64} << 20;
  void* block = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(block, MAP_FAILED);
  std::memset(block, 1, kBytes);
  EXPECT_GE(resident_bytes(), before + int64_t{60} * (1 << 20));
  EXPECT_GE(peak_resident_bytes(), before + int64_t{60} * (1 << 20));
  ::munmap(block, kBytes);
  EXPECT_GE(peak_resident_bytes(), before + int64_t{60} * (1 << 20));
  EXPECT_NO_THROW(reset_peak_resident());
  EXPECT_GT(peak_resident_bytes(), 0);
}

TEST(HostInfo, FreeDiskOfAPathThatIsYetToBe) {
  const TempDir dir;
  EXPECT_GT(free_disk_bytes(dir.path()), 0);
  EXPECT_GT(free_disk_bytes(dir / "not/yet/there"), 0);
}

TEST(HostInfo, TimestampIsRfc3339) {
  const std::string text = utc_timestamp();
  ASSERT_EQ(text.size(), 20u);
  EXPECT_EQ(text[4], '-');
  EXPECT_EQ(text[10], 'T');
  EXPECT_EQ(text[19], 'Z');
}

}  // namespace
}  // namespace tightloop
