#include "tightloop/train/gemm_cache.h"

#include <filesystem>
#include <fstream>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/file.h"
#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

const GemmChoices kChoices{{"0 64 64 64", std::string(128, 'a')}, {"1 2 3", "0f"}};

TEST(GemmCache, TextComesBack) {
  const std::string text = gemm_cache_text("GPU, cuBLASLt 1", kChoices);
  EXPECT_EQ(parse_gemm_cache(text, "GPU, cuBLASLt 1", "f"), kChoices);
  EXPECT_EQ(parse_gemm_cache(gemm_cache_text("GPU", {}), "GPU", "f"), GemmChoices{});
}

TEST(GemmCache, RefusesWhatIsDamagedOrForeign) {
  const std::string text = gemm_cache_text("GPU, cuBLASLt 1", kChoices);
  const auto refused = [](const std::string& t, const std::string& machine) {
    try {
      parse_gemm_cache(t, machine, "file.json");
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::data);
      EXPECT_NE(e.message().find("file.json"), std::string::npos) << e.message();
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refused(text, "GPU, cuBLASLt 1"));
  EXPECT_TRUE(refused(text, "GPU, cuBLASLt 2"));
  EXPECT_TRUE(refused(text.substr(0, text.size() / 2), "GPU, cuBLASLt 1"));
  EXPECT_TRUE(refused("", "GPU, cuBLASLt 1"));
  EXPECT_TRUE(refused("[]", "GPU, cuBLASLt 1"));
  std::string flipped = text;
  flipped[text.find("aaaa")] = 'b';
  EXPECT_TRUE(refused(flipped, "GPU, cuBLASLt 1"));
  std::string number = text;
  number.replace(text.find("\"0f\""), 4, "1234");
  EXPECT_TRUE(refused(number, "GPU, cuBLASLt 1"));
}

TEST(GemmCache, FoundAreTheProductsThatNeededNoTiming) {
  const size_t used = used_gemm_choices().size();
  const int64_t found = gemm_choices_found(), timed = gemm_choices_timed();
  time_gemm_choices();
  adopt_gemm_choices({{"9 9 1", "aa"}, {"9 9 2", "bb"}});
  adopt_gemm_choices({{"9 9 3", "cc"}}, true);  // of a checkpoint
  gemm_choices::use("9 9 1", "aa", {});
  gemm_choices::use("9 9 4", "dd", 0.5);
  gemm_choices::use("9 9 5", "ee", {});  // no room to time it
  EXPECT_EQ(used_gemm_choices().size() - used, 4u);
  EXPECT_EQ(gemm_choices_found() - found, 2);
  EXPECT_EQ(gemm_choices_timed() - timed, 1);
}

TEST(GemmCache, OnCudaReplacesADamagedFile) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "tl-gemm-cache";
  std::filesystem::remove_all(folder);
  const std::string path = GemmCache(folder.string()).path();
  EXPECT_FALSE(std::filesystem::exists(path));
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << "not JSON";
  GemmCache cache(folder.string());
  gemm_choices::use("1 2 3", "0f", 0.0);  // as if timed
  cache.save_if_new();
  EXPECT_EQ(parse_gemm_cache(read_file(path), gemm_machine(), path).at("1 2 3"), "0f");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace tightloop
