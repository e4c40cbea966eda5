#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "tightloop/core/cuda_device.h"
#include "tightloop/core/dtype.h"
#include "tightloop/core/error.h"
#include "tightloop/core/exec.h"
#include "tightloop/core/rng.h"
#include "tightloop/core/tensor.h"
#include "tightloop/core/threads.h"

namespace tightloop {
namespace {

TEST(Error, ChainIsOutermostFirst) {
  Error e(ErrorKind::data, "bad magic");
  e.with_context("reading x.bin").with_context("cannot start training").with_hint("run it");
  EXPECT_EQ(e.chain(),
            (std::vector<std::string>{"cannot start training", "reading x.bin", "bad magic"}));
  EXPECT_EQ(e.hint(), "run it");
}

TEST(Error, NearestName) {
  EXPECT_EQ(nearest_name("dept", {"depth", "seed"}), "depth");
  EXPECT_EQ(nearest_name("zzzzzz", {"depth", "seed"}), "");
}

TEST(Device, MissingCudaSaysWhyAndWhatToDo) {
  if (cuda::device_count() > 0) {
    EXPECT_EQ(parse_device("cuda"), Device::cuda);
    return;
  }
  try {
    parse_device("cuda");
    FAIL() << "expected an Error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), cuda::built() ? ErrorKind::device : ErrorKind::unsupported);
    EXPECT_EQ(e.message().rfind("no CUDA device: ", 0), 0u) << e.message();
    EXPECT_NE(e.hint(), "");
  }
}

TEST(Dtype, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie to even
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::nanf("")))));
}

TEST(Tensor, ShapeBasics) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.elems(), 24);
  EXPECT_EQ(s.rows(), 6);
  EXPECT_EQ(s[-1], 4);
  EXPECT_EQ(to_string(Type{DType::bf16, s}), "bf16(2, 3, 4)");
  float x = 0;
  EXPECT_THROW((TensorView{&x, {DType::f32, {1}}}.as<int32_t>()), Error);
}

TEST(Rng, PhiloxKnownAnswer) {
  // Random123's known-answer vectors for philox4x32-10.
  EXPECT_EQ(philox4x32(0, 0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, NormalMoments) {
  std::vector<float> x(100001);
  fill_normal(x.data(), static_cast<int64_t>(x.size()), 1, 2, 0.5f, 2.0f);
  double sum = 0, squares = 0;
  for (float v : x) sum += v, squares += static_cast<double>(v) * v;
  const double mean = sum / static_cast<double>(x.size());
  EXPECT_NEAR(mean, 0.5, 0.03);
  EXPECT_NEAR(squares / static_cast<double>(x.size()) - mean * mean, 4.0, 0.1);
}

TEST(Threads, PartitionIgnoresThreadCount) {
  const int before = thread_count();
  for (int threads : {1, 2, 3}) {
    set_thread_count(threads);
    std::vector<int64_t> begins(7, -1);
    parallel_parts(100, 7, [&](int64_t begin, int64_t, int part) {
      begins[static_cast<size_t>(part)] = begin;
    });
    EXPECT_EQ(begins, (std::vector<int64_t>{0, 14, 28, 42, 57, 71, 85}));
  }
  set_thread_count(before);
}

TEST(Threads, ExceptionReachesCaller) {
  EXPECT_THROW(parallel_for(100, 1, [](int64_t, int64_t) { fail(ErrorKind::data, "x"); }), Error);
  EXPECT_FALSE(in_parallel());
}

}  // namespace
}  // namespace tightloop
