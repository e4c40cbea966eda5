#include "tightloop/core/json.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"

namespace tightloop {
namespace {

template <typename Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::data);
    return error.what();
  }
  return "no error";
}

TEST(Json, FieldsOfEachType) {
  const Json object = parse_json(
      R"({"b": true, "i": -3, "w": 4.0, "f": 0.5, "s": "x", "a": [1], "o": {}, "n": null})",
      "t.json");
  EXPECT_TRUE(get_bool(object, "b", "t"));
  EXPECT_EQ(get_int(object, "i", "t"), -3);
  EXPECT_EQ(get_int(object, "w", "t"), 4);
  EXPECT_EQ(get_double(object, "f", "t"), 0.5);
  EXPECT_EQ(get_double(object, "i", "t"), -3.0);
  EXPECT_EQ(get_string(object, "s", "t"), "x");
  EXPECT_EQ(get_array(object, "a", "t").size(), 1u);
  EXPECT_EQ(get_object(object, "o", "t").size(), 0u);
  EXPECT_EQ(find_field(object, "n", "t"), nullptr);
  EXPECT_EQ(get_int(object, "none", "t", 7), 7);
  EXPECT_EQ(get_int(object, "n", "t", 7), 7);
  EXPECT_EQ(get_string(object, "none", "t", "d"), "d");
}

TEST(Json, ErrorsNameFieldGotAndExpected) {
  const Json object = parse_json(R"({"f": 0.5, "s": "x", "big": 18446744073709551615})", "t.json");
  EXPECT_EQ(message_of([&] { get_int(object, "f", "t.json: config"); }),
            "t.json: config: field 'f' is 0.5, expected a whole number");
  EXPECT_EQ(message_of([&] { get_int(object, "none", "t.json"); }),
            "t.json: field 'none' is missing");
  EXPECT_EQ(message_of([&] { get_bool(object, "s", "t.json", true); }),
            "t.json: field 's' is \"x\", expected true or false");
  EXPECT_NE(message_of([&] { get_int(object, "big", "t"); }).find("below 2^63"), std::string::npos);
  EXPECT_EQ(message_of([&] { get_field(object["s"], "k", "t"); }),
            "t: is string, expected an object");
}

TEST(Json, ParseErrorsHaveLineAndColumn) {
  EXPECT_EQ(
      message_of([] { parse_json("{\"a\": 1,\n  oops}", "t.json"); }).rfind("t.json:2:3: ", 0), 0u);
  EXPECT_EQ(message_of([] { parse_json("", "t.json"); }).rfind("t.json:1:1: ", 0), 0u);
  EXPECT_EQ(message_of([] { parse_json("{} trailing", "t.json"); }).rfind("t.json:1:", 0), 0u);
}

TEST(Json, DeepNestingIsNoStackOverflow) {
  const std::string deep(200000, '[');
  EXPECT_NE(message_of([&] { parse_json(deep, "t"); }), "no error");
  EXPECT_NO_THROW(parse_json(deep + std::string(200000, ']'), "t"));
}

TEST(Json, MissingFileIsAnIoError) {
  try {
    read_json("/nonexistent/x.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
  }
}

}  // namespace
}  // namespace tightloop
