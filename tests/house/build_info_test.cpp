#include "tightloop/core/build_info.h"

#include <algorithm>
#include <string_view>

#include <gtest/gtest.h>

namespace tightloop {
namespace {

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

TEST(BuildInfo, CommitIsAHashOrSaysItIsUnknown) {
  std::string_view commit = build_info().commit;
  if (commit == "unknown") return;
  constexpr std::string_view kDirty = "-dirty";
  const bool dirty = commit.ends_with(kDirty);
  if (dirty) commit.remove_suffix(kDirty.size());
  EXPECT_EQ(commit.size(), 40u) << commit;
  EXPECT_TRUE(is_hex(commit)) << commit;
  EXPECT_EQ(build_info().diff_sha256.size(), dirty ? 64u : 0u);
  EXPECT_TRUE(is_hex(build_info().diff_sha256));
}

TEST(BuildInfo, NamesCompilerFlagsTypeAndPreset) {
  const BuildInfo& info = build_info();
  EXPECT_NE(info.compiler.find(' '), std::string_view::npos) << info.compiler;
  EXPECT_NE(info.flags.find("-Wall"), std::string_view::npos) << info.flags;
  EXPECT_FALSE(info.version.empty());
  EXPECT_FALSE(info.build_type.empty());
  EXPECT_FALSE(info.preset.empty());
  EXPECT_FALSE(info.system.empty());
}

}  // namespace
}  // namespace tightloop
