#include "tightloop/io/safetensors.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>

#include <gtest/gtest.h>

#include "tightloop/core/rng.h"
#include "tightloop/core/unit_testing.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

std::string with_length(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

SafetensorsIndex parse(const std::string& bytes) {
  return parse_safetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "t.st");
}

void expect_bad(std::string_view part, const std::string& header, const std::string& data) {
  expect_error(ErrorKind::data, part, [&] { parse(with_length(header, data)); });
}

constexpr const char* kGood =
    R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";

TEST(Safetensors, RoundTripsEveryDtype) {
  const TempDir dir;
  std::vector<uint8_t> memory(4096);
  std::iota(memory.begin(), memory.end(), uint8_t{0});
  const std::vector<NamedTensor> tensors = {
      {"bytes", {memory.data(), {DType::u8, {3}}}},
      {"wörd \"x\"", {memory.data() + 8, {DType::u16, {2, 3}}}},
      {"b", {memory.data() + 16, {DType::bf16, {1, 1, 1, 1, 5}}}},
      {"i32", {memory.data() + 32, {DType::i32, {}}}},
      {"f32", {memory.data() + 64, {DType::f32, {7, 3}}}},
      {"i64", {memory.data() + 256, {DType::i64, {2}}}},
      {"f64", {memory.data() + 512, {DType::f64, {4}}}},
      {"none", {memory.data(), {DType::f32, {0, 4}}}},
  };
  write_safetensors(dir / "t.st", tensors, {{"step", "12"}, {"a", "\n"}});
  const SafetensorsFile file(dir / "t.st");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"step", "12"}, {"a", "\n"}}));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const NamedTensor& tensor : tensors) {
    const ConstTensorView view = file.at(tensor.name, tensor.view.type);
    EXPECT_EQ(std::memcmp(view.data, tensor.view.data, static_cast<size_t>(view.bytes())), 0)
        << tensor.name;
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(size_of(view.dtype())), 0u);
  }
  write_safetensors(dir / "again.st", tensors, {{"step", "12"}, {"a", "\n"}});
  EXPECT_EQ(read_file(dir / "t.st"), read_file(dir / "again.st"));
}

TEST(Safetensors, EmptyFileOfTensors) {
  const TempDir dir;
  write_safetensors(dir / "t.st", {});
  EXPECT_TRUE(SafetensorsFile(dir / "t.st").tensors().empty());
}

TEST(Safetensors, ReadsWhatOthersWrite) {
  const SafetensorsIndex index = parse(with_length(kGood, std::string(9, 'x')));
  ASSERT_EQ(index.entries.size(), 2u);
  EXPECT_EQ(index.entries[0].name, "a");
  EXPECT_EQ(index.entries[0].type, (Type{DType::f32, {2}}));
  EXPECT_EQ(index.entries[1].offset, index.entries[0].offset + 8);
  EXPECT_EQ(index.metadata.at("k"), "v");
}

TEST(Safetensors, UnalignedTensorsAreCopied) {
  const TempDir dir;
  const float value = 1.5f;
  std::string data = "x";
  data.append(reinterpret_cast<const char*>(&value), 4);
  write_file_atomically(dir / "t.st",
                        with_length(R"({"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                    R"("f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                                    data));
  const SafetensorsFile file(dir / "t.st");
  EXPECT_EQ(*file.at("f").as<float>(), 1.5f);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at("f").data) % 4, 0u);
}

TEST(Safetensors, DtypesThatAreNotOursAreListedButNotGiven) {
  const TempDir dir;
  write_file_atomically(
      dir / "t.st",
      with_length(R"({"m":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "xx"));
  const SafetensorsFile file(dir / "t.st");
  EXPECT_TRUE(file.contains("m"));
  EXPECT_TRUE(file.tensors().empty());
  expect_error(ErrorKind::dtype, "'m' is stored as BOOL", [&] { file.at("m"); });
}

TEST(Safetensors, MissingAndMismatchedTensors) {
  const TempDir dir;
  write_file_atomically(dir / "t.st", with_length(kGood, std::string(9, 'x')));
  const SafetensorsFile file(dir / "t.st");
  expect_error(ErrorKind::data, "has no tensor 'aa' (nearest: 'a')", [&] { file.at("aa"); });
  expect_error(ErrorKind::data, "'a' is f32(2), expected f32(3)", [&] {
    file.at("a", {DType::f32, {3}});
  });
}

TEST(Safetensors, HostileLengths) {
  expect_error(ErrorKind::data, "too short", [] { parse(""); });
  expect_error(ErrorKind::data, "too short", [] { parse("123456789"); });
  std::string huge(100, '\xff');
  expect_error(ErrorKind::data, "at most 100000000", [&] { parse(huge); });
  std::string cut = with_length(kGood, std::string(9, 'x'));
  expect_error(ErrorKind::data, "truncated", [&] { parse(cut.substr(0, 60)); });
  for (size_t n = 0; n < cut.size(); ++n)
    EXPECT_EQ(error_of([&] { parse(cut.substr(0, n)); }).kind(), ErrorKind::data) << n;
}

TEST(Safetensors, HostileHeaders) {
  expect_bad("does not start with '{'", "[]", "");
  expect_bad("not valid JSON", R"({"a":)", "");
  expect_bad("not valid JSON", R"({} {})", "");
  expect_bad("'a' is given twice",
             R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
             R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
             "x");
  expect_bad("field 'shape': given twice",
             R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "x");
  expect_bad("unknown field", R"({"a":{"dtype":"U8","shape":[1],"offsets":[0,1]}})", "x");
  expect_bad("unknown dtype 'F99'", R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}})",
             "x");
  expect_bad("field 'dtype' is missing", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", "x");
  expect_bad("got -1, expected a whole number",
             R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", "x");
  expect_bad("got 1.5", R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", "x");
  expect_bad("expected a list of sizes", R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})",
             "x");
  expect_bad("expected a string", R"({"a":{"dtype":[],"shape":[1],"data_offsets":[0,1]}})", "x");
  expect_bad("got a list", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", "x");
  expect_bad("got 3, expected an object", R"({"a":3})", "x");
  expect_bad("expected a string", R"({"__metadata__":{"a":1}})", "");
  expect_bad("expected a string", R"({"__metadata__":{"a":{}}})", "");
  expect_bad("6 dimensions", R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})",
             "x");
  expect_bad("more than 16 numbers",
             R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}})", "x");
  expect_bad("overflows",
             R"({"a":{"dtype":"F64","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", "");
  std::string deep(100000, '[');
  expect_bad("got a list", "{\"a\":{\"shape\":[" + deep, "x");
}

TEST(Safetensors, HostileOffsets) {
  expect_bad("expected [begin, end]", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})",
             "x");
  expect_bad("expected [begin, end]", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})",
             "x");
  expect_bad("hold 4 bytes, F32 of shape [2] needs 8",
             R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "xxxx");
  expect_bad("truncated or corrupt", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
             "xxxx");
  expect_bad("overlap",
             R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
             R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
             "xxx");
  expect_bad("1 bytes before tensor 'b'",
             R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
             R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
             "xxx");
  expect_bad("2 bytes after the last tensor",
             R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "xxx");
}

TEST(Safetensors, WriterRefusesBadNames) {
  const TempDir dir;
  const float x = 0;
  const NamedTensor a{"a", {&x, {DType::f32, {1}}}};
  const NamedTensor reserved{"__metadata__", {&x, {DType::f32, {1}}}};
  const NamedTensor latin1{"\xe9", {&x, {DType::f32, {1}}}};
  expect_error(ErrorKind::usage, "given twice", [&] {
    write_safetensors(dir / "t", std::vector{a, a});
  });
  expect_error(ErrorKind::usage, "reserved",
               [&] { write_safetensors(dir / "t", std::vector{reserved}); });
  expect_error(ErrorKind::usage, "UTF-8",
               [&] { write_safetensors(dir / "t", std::vector{latin1}); });
  EXPECT_FALSE(std::ifstream(dir / "t").good());
}

TEST(Safetensors, ReadsAndRewritesFilesOfTheReferenceImplementation) {
  const char* source = std::getenv("TL_SOURCE_DIR");
  const std::string path = std::string(source == nullptr ? "." : source) +
                           "/../shared/golden/nanochat-a/weights.safetensors";
  if (!std::ifstream(path).good()) GTEST_SKIP() << "no " << path;
  const TempDir dir;
  const SafetensorsFile file(path);
  ASSERT_FALSE(file.tensors().empty());
  write_safetensors(dir / "copy", file.tensors(), file.metadata());
  const SafetensorsFile copy(dir / "copy");
  for (const NamedTensor& tensor : file.tensors()) {
    const ConstTensorView view = copy.at(tensor.name, tensor.view.type);
    EXPECT_EQ(std::memcmp(view.data, tensor.view.data, static_cast<size_t>(view.bytes())), 0);
  }
}

// Random damage to a valid file: it is read or refused, never anything else.
TEST(Safetensors, SurvivesRandomDamage) {
  const std::string good = with_length(kGood, std::string(9, 'x'));
  Rng rng(7, 0);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (uint64_t edits = 1 + rng.below(3); edits > 0; --edits) {
      const size_t at = rng.below(bytes.size());
      switch (rng.below(3)) {
        case 0:
          bytes[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          bytes.erase(at, 1 + rng.below(4));
          break;
        default:
          bytes.insert(at, bytes.substr(rng.below(bytes.size()), 1 + rng.below(8)));
      }
      if (bytes.empty()) bytes = "x";
    }
    try {
      for (const SafetensorsEntry& entry : parse(bytes).entries)
        ASSERT_LE(entry.offset + entry.bytes, static_cast<int64_t>(bytes.size()));
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::data);
      ++refused;
    }
  }
  EXPECT_GT(refused, 15000);
}

}  // namespace
}  // namespace tightloop
