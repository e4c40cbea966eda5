#include "tightloop/io/toml_config.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "tightloop/core/rng.h"
#include "tightloop/core/unit_testing.h"
#include "tightloop/io/atomic_file.h"

namespace tightloop {
namespace {

TEST(Toml, FlattensInTheOrderWritten) {
  const auto entries = parse_toml(R"(# a run
seed = 7
[optim]
matrix_lr = 0.02
b = true
"quoted-key" = "x"
betas = [0.8, 0.95]
[model.attn]
window = "SSSL"
inline = { z = 1, a = 2 }
[data]
)",
                                  "c.toml");
  ASSERT_EQ(entries.size(), 8u);
  EXPECT_EQ(entries[0].key, "seed");
  EXPECT_EQ(std::get<int64_t>(entries[0].value), 7);
  EXPECT_EQ(entries[0].origin, "c.toml:2:1");
  EXPECT_EQ(entries[1].key, "optim.matrix_lr");
  EXPECT_EQ(std::get<double>(entries[1].value), 0.02);
  EXPECT_TRUE(std::get<bool>(entries[2].value));
  EXPECT_EQ(entries[3].key, "optim.quoted-key");
  EXPECT_EQ(std::get<std::vector<ConfigScalar>>(entries[4].value).size(), 2u);
  EXPECT_EQ(entries[5].key, "model.attn.window");
  EXPECT_EQ(entries[6].key, "model.attn.inline.z");
  EXPECT_EQ(entries[7].key, "model.attn.inline.a");
}

void expect_bad(std::string_view part, std::string_view text) {
  expect_error(ErrorKind::data, part, [&] { parse_toml(text, "c.toml"); });
}

TEST(Toml, ErrorsNameFileLineAndColumn) {
  expect_bad("c.toml:2:5: not valid TOML", "a = 1\nb = \n");
  expect_bad("c.toml:1:", "\xff");
  expect_bad("not valid TOML", "a = 1\na = 2\n");
  expect_bad("c.toml:2:5: 'd' is a date", "a = 1\nd = 2026-07-03\n");
  expect_bad("c.toml:1:6: 'a' holds a list", "a = [[1]]");
  expect_bad("'t' holds a list, table", "[[t]]\nx = 1\n");
  expect_bad("c.toml:1:1: a key with dots", "\"a.b\" = 1");
  expect_bad("c.toml:1:1: a key with dots", "\"\" = 1");
  expect_bad("expected at most 1048576", std::string((1 << 20) + 1, '\n'));
}

TEST(Toml, DeepNestingIsRefused) {
  std::string key = "a";
  for (int i = 0; i < 100000; ++i) key += ".a";
  expect_bad("parts", key + " = 1");
  expect_bad("parts", "[" + key + "]");
  expect_bad("not valid TOML", "a = " + std::string(300000, '['));
  std::string tables = "a = ";
  for (int i = 0; i < 100000; ++i) tables += "{a=";
  expect_bad("not valid TOML", tables);
  EXPECT_EQ(parse_toml("a = \"" + std::string(100, '.') + "\"", "t").size(), 1u);
}

TEST(Toml, MissingFile) {
  expect_error(ErrorKind::io, "/nonexistent.toml: cannot open",
               [] { read_toml("/nonexistent.toml"); });
}

TEST(Setting, ValuesAreTomlOrText) {
  EXPECT_EQ(std::get<int64_t>(parse_setting("a.b=3").value), 3);
  EXPECT_EQ(parse_setting("a.b=3").key, "a.b");
  EXPECT_EQ(parse_setting("a.b=3").origin, "--set");
  EXPECT_EQ(std::get<double>(parse_setting("a=3e-4").value), 3e-4);
  EXPECT_TRUE(std::get<bool>(parse_setting("a=true").value));
  EXPECT_EQ(std::get<std::string>(parse_setting("a=cosine").value), "cosine");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=\"3\"").value), "3");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=2026-07").value), "2026-07");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=2026-07-03").value), "2026-07-03");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=x=y").value), "x=y");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=").value), "");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=1\nb=2").value), "1\nb=2");
  EXPECT_EQ(std::get<std::string>(parse_setting("a=runs/x #1").value), "runs/x #1");
  EXPECT_EQ(std::get<std::vector<ConfigScalar>>(parse_setting("a=[1, 2]").value).size(), 2u);
}

TEST(Setting, Errors) {
  for (const char* bad : {"", "a", "=1", ".a=1", "a.=1", "a..b=1", "a b=1"})
    expect_error(ErrorKind::usage, "expected key=value", [&] { parse_setting(bad); });
  expect_error(ErrorKind::usage, "--set a=[1: not a value", [] { parse_setting("a=[1"); });
  expect_error(ErrorKind::usage, "--set a=\"x: not a value", [] { parse_setting("a=\"x"); });
}

TEST(ConfigValue, WritesTomlThatReadsBack) {
  const std::vector<ConfigValue> values = {true,
                                           int64_t{-5},
                                           0.1,
                                           3.0,
                                           1e300,
                                           std::numeric_limits<double>::infinity(),
                                           std::string("a\"\\\n\t\x01 ü"),
                                           std::vector<ConfigScalar>{int64_t{1}, std::string("x")}};
  for (const ConfigValue& value : values) {
    const std::string text = to_string(value);
    EXPECT_EQ(parse_toml("v = " + text, "t")[0].value, value) << text;
  }
  EXPECT_EQ(to_string(ConfigValue(3.0)), "3.0");
  EXPECT_TRUE(
      std::isnan(std::get<double>(parse_toml("v = " + to_string(ConfigValue(NAN)), "t")[0].value)));
  EXPECT_EQ(type_name(ConfigValue(3.0)), "a number");
}

TEST(Toml, SurvivesRandomDamage) {
  const std::string good =
      "a = 1\n[b.c]\nd = [1, 2.5, \"x\"]\ne = { f = true, g = '''y''' }\n[[h]]\ni = 0x1F\n";
  Rng rng(3, 0);
  for (int i = 0; i < 5000; ++i) {
    std::string text = good;
    for (uint64_t edits = 1 + rng.below(3); edits > 0; --edits) {
      const size_t at = rng.below(text.size());
      switch (rng.below(3)) {
        case 0:
          text[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          text.erase(at, 1 + rng.below(4));
          break;
        default:
          text.insert(at, text.substr(rng.below(text.size()), 1 + rng.below(8)));
      }
      if (text.empty()) text = "x";
    }
    try {
      parse_toml(text, "t");
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::data);
    }
  }
}

}  // namespace
}  // namespace tightloop
