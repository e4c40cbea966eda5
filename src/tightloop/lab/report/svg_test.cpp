#include "tightloop/lab/report/svg.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "tightloop/lab/report/xml_testing.h"

namespace tightloop {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(Text, EscapesMarkupAndReplacesWhatXmlForbids) {
  EXPECT_EQ(escape_text("<script>\"a\" & 'b'</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;");
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(clean_text(std::string_view("a\0b", 3)), "a" + bad + "b");
  EXPECT_EQ(clean_text("\x1b[31m"), bad + "[31m");
  EXPECT_EQ(clean_text("caf\xC3\xA9 \xF0\x9F\x98\x80"), "caf\xC3\xA9 \xF0\x9F\x98\x80");
  EXPECT_EQ(clean_text("\xC3"), bad);                      // cut short
  EXPECT_EQ(clean_text("\xC0\xAF"), bad + bad);            // overlong
  EXPECT_EQ(clean_text("\xED\xA0\x80"), bad + bad + bad);  // surrogate
  EXPECT_EQ(clean_text("\xEF\xBF\xBF"), bad + bad + bad);  // U+FFFF
  EXPECT_EQ(clean_text("\xF5\x80\x80\x80"), bad + bad + bad + bad);
}

TEST(SvgText, NoZeroIsNegative) {
  EXPECT_EQ(signed_number(1.254, 2), "+1.25");
  EXPECT_EQ(signed_number(-0.3, 2), "-0.30");
  EXPECT_EQ(signed_number(-0.004, 2), "+0.00");
  EXPECT_EQ(signed_number(-0.0, 1), "+0.0");
  EXPECT_EQ(signed_number(-0.006, 2), "-0.01");
}

TEST(Numbers, AreShortAndHaveUnits) {
  EXPECT_EQ(short_number(0.0), "0");
  EXPECT_EQ(short_number(1.2345), "1.23");
  EXPECT_EQ(short_number(-0.012345), "-0.0123");
  EXPECT_EQ(short_number(123.4), "123");
  EXPECT_EQ(short_number(20480.0), "20,480");
  EXPECT_EQ(short_number(-1234567.0), "-1,234,567");
  EXPECT_EQ(short_number(3.3e9), "3.30e+09");
  EXPECT_EQ(short_number(kNan), "n/a");
  EXPECT_EQ(human_bytes_text(1536.0), "1.50 KiB");
  EXPECT_EQ(human_seconds(0.0123), "12.3 ms");
  EXPECT_EQ(human_seconds(12.3), "12.3 s");
  EXPECT_EQ(human_flops(2.1e9), "2.10 GFLOP");
  EXPECT_EQ(human_bytes_text(kInf), "n/a");
}

TEST(Axis, MapsEndsToPixels) {
  const Axis linear{Axis::Scale::linear, 2.0, 4.0, 10.0, 110.0};
  EXPECT_DOUBLE_EQ(linear.at(3.0), 60.0);
  EXPECT_DOUBLE_EQ(linear.clamped(9.0), 110.0);
  const Axis log{Axis::Scale::log, 1.0, 100.0, 0.0, 100.0};
  EXPECT_NEAR(log.at(10.0), 50.0, 1e-9);
  EXPECT_FALSE(std::isfinite(log.at(0.0)));
  EXPECT_DOUBLE_EQ(log.clamped(0.0), 0.0);
}

TEST(Axis, TicksAreRoundInsideAndFew) {
  const Axis linear{Axis::Scale::linear, 12.6, 14.9, 0.0, 100.0};
  std::vector<std::string> labels;
  for (const Tick& t : ticks(linear, 6)) labels.push_back(t.label);
  EXPECT_EQ(labels, (std::vector<std::string>{"13.0", "13.5", "14.0", "14.5"}));
  labels.clear();
  const Axis log{Axis::Scale::log, 0.01, 1000.0, 0.0, 100.0};
  for (const Tick& t : ticks(log, 6)) {
    EXPECT_GE(t.value, 0.01 * 0.999);
    EXPECT_LE(t.value, 1000.0 * 1.001);
    if (!t.label.empty()) labels.push_back(t.label);
  }
  EXPECT_EQ(labels, (std::vector<std::string>{"0.01", "0.1", "1", "10", "100", "1000"}));
}

TEST(Axis, SurvivesEveryDomain) {
  const double values[] = {0.0, -0.0, 1.0, -1.0, 1e-320, 1e-300, 1e300, -1e300, kInf, -kInf, kNan};
  for (double low : values) {
    for (double high : values) {
      for (Axis::Scale scale : {Axis::Scale::linear, Axis::Scale::log}) {
        const Axis axis = nice_axis(scale, low, high, 0.0, 100.0);
        ASSERT_TRUE(std::isfinite(axis.low) && axis.low < axis.high) << low << " " << high;
        ASSERT_LT(ticks(axis, 8).size(), 700u) << low << " " << high;
        ASSERT_TRUE(std::isfinite(axis.at(axis.high)));
      }
    }
  }
}

TEST(Svg, IsWellFormedWhateverItIsGiven) {
  Svg svg("x", 100, 50, "a <title> & more");
  svg.line({0, 0}, {kNan, 1}, "ln");
  svg.line({0, 0}, {1, 1}, "ln");
  svg.polyline({{0, 0}, {1, 1}, {kInf, 2}, {3, 3}}, "ln");
  svg.polygon({{0, 0}, {1, 1}, {2, kNan}}, "dot");
  svg.arrow({0, 0}, {20, 20}, "c1");
  svg.arrow({0, 0}, {0, 0}, "c1");
  svg.open_mark({kNan, 3}, "</title><script>alert(1)</script>", "c0");
  for (const MarkShape shape :
       {MarkShape::circle, MarkShape::square, MarkShape::triangle, MarkShape::diamond}) {
    svg.shape(shape, {5, 5}, 2, "dot");
    svg.shape(shape, {kNan, 5}, 2, "dot");
  }
  svg.close();
  svg.open_clipped(0, 0, 10, 10);
  svg.text({1, 1}, "5 < 6 & \xFF", "tick", Anchor::end, 45.0);
  svg.close();
  const std::string file = svg.file();
  EXPECT_EQ(xml_fault(file), "") << file;
  EXPECT_EQ(file.find("nan"), std::string::npos);
  EXPECT_EQ(file.find("inf"), std::string::npos);
  EXPECT_EQ(file.find("<script"), std::string::npos);
  EXPECT_EQ(xml_fault(svg.inlined("page")), "");
}

TEST(XmlFault, FindsFaults) {
  EXPECT_EQ(xml_fault("<a b=\"c\"><d/>x &amp; y</a>"), "");
  for (const char* bad : {"<a>", "<a></b>", "<a b=c></a>", "<a>x & y</a>", "<a><</a>", "x<a/>",
                          "<a/><b/>", "<a b=\"x\" b=\"y\"/>", "<a b=\"<\"/>"})
    EXPECT_NE(xml_fault(bad), "") << bad;
}

}  // namespace
}  // namespace tightloop
