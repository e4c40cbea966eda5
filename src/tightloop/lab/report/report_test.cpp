#include "tightloop/lab/report/report.h"

#include <cstdlib>
#include <filesystem>
#include <limits>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/io/atomic_file.h"
#include "tightloop/lab/report/panels.h"
#include "tightloop/lab/report/report_testing.h"
#include "tightloop/lab/report/xml_testing.h"

namespace tightloop {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

int64_t count(std::string_view text, std::string_view what) {
  int64_t n = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

/// The elements of the page between its style and its data, as one XML document.
std::string body_of(const std::string& html) {
  const size_t first = html.find("<main>"), last = html.find("<script type=");
  return html.substr(first, last - first) + "</main>";
}

OrderedJson data_of(const std::string& html) {
  const std::string start = "id=\"report-data\">";
  const size_t first = html.find(start) + start.size();
  return OrderedJson::parse(html.substr(first, html.find("</script>", first) - first));
}

void expect_sound(const ReportData& data) {
  const std::string html = render_html(data);
  std::string body = body_of(html);
  for (size_t at = 0; (at = body.find("&nbsp;", at)) != std::string::npos;)
    body.replace(at, 6, " ");
  EXPECT_EQ(xml_fault(body), "");
  EXPECT_NO_THROW(data_of(html));
  EXPECT_EQ(count(html, "</script>"), 2);
  for (const char* outside : {"src=", "@import", "url(http", "<link rel=\"stylesheet\""})
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  for (Panel panel : {Panel::roofline, Panel::quality}) {
    const std::string svg = panel_svg(data, panel);
    EXPECT_EQ(xml_fault(svg), "");
    for (const char* number : {"=\"nan", "=\"inf", "=\"-nan", "=\"-inf", ",nan", ",inf"})
      EXPECT_EQ(svg.find(number), std::string::npos) << number;
  }
  const std::string text = render_text(data);
  size_t start = 0;
  for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
    const std::string line = text.substr(start, end - start);
    int64_t columns = 0;
    for (char c : line) columns += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    EXPECT_LE(columns, 80) << line;
  }
  EXPECT_EQ(start, text.size());  // ends with a line break
}

TEST(Report, ExampleIsSoundAndSaysTheAnswerFirst) {
  const ReportData data = example_report();
  expect_sound(data);
  const std::string html = render_html(data);
  EXPECT_NE(html.find("<h1><span class=\"goal\">val_bpb ≤ 1.25</span>: both rewrites"),
            std::string::npos);
  EXPECT_EQ(render_text(data).rfind("val_bpb ≤ 1.25: both rewrites", 0), 0u);
  for (const char* part : {"panel-roofline", "panel-quality", "residual_rmsnorm", "inconclusive",
                           "tightloop lab run G", "known floor 1.082", "target 1.25"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
}

TEST(Report, EveryOpAndEveryCrossingIsAMark) {
  const ReportData data = example_report();
  const std::string roofline = panel_svg(data, Panel::roofline);
  EXPECT_EQ(count(roofline, "<g class=\"m "), static_cast<int64_t>(data.points.size()));
  const std::string quality = panel_svg(data, Panel::quality);
  // 7 of 8 runs cross; each crossing is on the curve and in the enlargement.
  EXPECT_EQ(count(quality, "target reached at"), 14);
  EXPECT_NE(quality.find("1 of 2 runs"), std::string::npos);
  EXPECT_NE(quality.find("<polyline"), std::string::npos);
}

TEST(Report, ArrowsLeadFromReplacedOps) {
  ReportData data = example_report();
  const int64_t with = count(panel_svg(data, Panel::roofline), "pale");
  for (RooflinePoint& p : data.points) p.replaces.clear();
  EXPECT_LT(count(panel_svg(data, Panel::roofline), "pale"), with);
}

TEST(Report, JsonHoldsThePlottedNumbers) {
  const ReportData data = example_report();
  const OrderedJson json = data_of(render_html(data));
  ASSERT_EQ(json["runs"].size(), data.runs.size());
  EXPECT_EQ(json["runs"][0]["clock_s"].size(), data.runs[0].curve.size());
  EXPECT_DOUBLE_EQ(json["runs"][0]["crossing"]["clock_s"].get<double>(),
                   data.runs[0].crossing->clock_s);
  EXPECT_TRUE(json["runs"][5]["crossing"].is_null());
  EXPECT_EQ(json["roofline"].size(), data.points.size());
  EXPECT_DOUBLE_EQ(json["threshold"].get<double>(), 1.25);
}

TEST(Report, EmptyAndPartialData) {
  expect_sound({});
  ReportData only_title;
  only_title.title = "nothing yet";
  expect_sound(only_title);
  EXPECT_NE(render_html(only_title).find("<h1>nothing yet</h1>"), std::string::npos);
  EXPECT_NE(panel_svg(only_title, Panel::roofline).find("no profile"), std::string::npos);
  EXPECT_NE(panel_svg(only_title, Panel::quality).find("no run"), std::string::npos);

  ReportData no_ceilings = example_report();
  no_ceilings.ceilings.reset();
  expect_sound(no_ceilings);
  ReportData no_arms = example_report();
  no_arms.arms.clear();
  expect_sound(no_arms);
}

TEST(Report, NamesAndPerCentAreNotBroken) {
  ReportData data;
  data.answer = "fused-rmsnorm, b 2.0 % less <x-y> -1.5";
  EXPECT_NE(
      render_html(data).find("<h1><span class=\"name\">fused-rmsnorm,</span> b 2.0&nbsp;% less "
                             "<span class=\"name\">&lt;x-y&gt;</span> -1.5</h1>"),
      std::string::npos);
}

TEST(Report, OneRun) {
  ReportData data = example_report();
  data.runs.resize(1);
  data.arms.resize(1);
  data.verdicts.clear();
  expect_sound(data);
  EXPECT_TRUE(mean_curve(data, "baseline").points.empty());
  data.runs[0].curve.resize(1);
  expect_sound(data);
  data.runs[0].curve.clear();
  expect_sound(data);
}

TEST(Report, NoRunReachesTheTarget) {
  ReportData data = example_report();
  for (ReportRun& run : data.runs) run.crossing.reset();
  expect_sound(data);
  EXPECT_EQ(panel_svg(data, Panel::quality).find("seconds to the target"), std::string::npos);
  EXPECT_NE(render_text(data).find("not reached"), std::string::npos);
}

TEST(Report, AFloorFarBelowDoesNotSqueezeTheCurves) {
  ReportData data = example_report();
  EXPECT_NE(panel_svg(data, Panel::quality).find("known floor 1.082<"), std::string::npos);
  data.floor = 0.1;
  EXPECT_NE(panel_svg(data, Panel::quality).find("known floor 0.1 is below<"), std::string::npos);
}

TEST(Report, SmallPurposesOfMemoryAreOne) {
  ReportData data = example_report();
  for (ReportMemory& m : data.memory) {
    m.bytes.emplace_back("scalars", 700.0);
    m.bytes.emplace_back("constants", 0x1p20);
  }
  const std::string html = render_html(data);
  EXPECT_NE(html.find("</i>other<"), std::string::npos);
  EXPECT_EQ(html.find("</i>scalars<"), std::string::npos);
  EXPECT_NE(html.find(">scalars</th>"), std::string::npos);  // the numbers have it
}

TEST(Report, MeanCurveTakesStepsThatAllRunsHave) {
  const ReportData data = example_report();
  const MeanCurve full = mean_curve(data, "baseline"), cut = mean_curve(data, "chunked-ce");
  EXPECT_EQ(full.runs, 2);
  EXPECT_EQ(full.points.size(), 31u);
  EXPECT_EQ(cut.points.size(), 13u);  // seed 2 stopped at step 96
  EXPECT_NEAR(full.points[3].clock_s, 24 * 0.1 * 1.006, 1e-12);
}

TEST(Report, HostileText) {
  const std::string evil =
      "</script><script>alert(1)</script><!-- \" ' & ]]> \xFF\x01 " + std::string(300, 'w');
  ReportData data = example_report();
  data.title = data.answer = data.metric = data.metric_sd_source = evil;
  for (ReportArm& arm : data.arms) arm.name = arm.flags = evil;
  for (ReportRun& run : data.runs) run.arm = run.status = evil;
  for (RooflinePoint& p : data.points) {
    p.arm = p.name = p.phase = evil;
    p.replaces = {evil};
  }
  for (ReportVerdict& v : data.verdicts) {
    v.arm = v.word = v.text = evil;
    for (ReportEffect& e : v.effects) e.what = evil;
  }
  for (ReportTable& t : data.tables) {
    t.title = t.note = evil;
    for (std::string& c : t.columns) c = evil;
    for (auto& row : t.rows) row[0] = evil;
  }
  for (ReportMemory& m : data.memory) {
    m.arm = evil;
    m.bytes[0].first = evil;
  }
  for (ReportRewrite& r : data.rewrites) r.name = r.lines[0] = evil;
  data.commands = data.notes = {evil};
  data.machine = {{evil, evil}};
  data.ceilings->how = evil;
  const std::string html = render_html(data);
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_EQ(html.find("<!-- "), std::string::npos);
  EXPECT_EQ(xml_fault(panel_svg(data, Panel::roofline)), "");
  EXPECT_EQ(xml_fault(panel_svg(data, Panel::quality)), "");
  EXPECT_EQ(data_of(html)["v"], 1);
  EXPECT_EQ(count(html, "</script>"), 2);
}

TEST(Report, NumbersThatAreNotFinite) {
  for (double bad : {kNan, kInf, -kInf, 1e300, -1e300, 0.0}) {
    ReportData data = example_report();
    data.threshold = bad;
    data.floor = data.metric_sd = bad;
    for (ReportRun& run : data.runs) {
      run.curve[2].metric = bad;
      run.curve[3].clock_s = bad;
      run.curve[4].step = bad;
    }
    data.runs[0].crossing->clock_s = bad;
    data.runs[2].crossing->high_s = bad;
    data.ceilings->peak_gflops = bad;
    for (size_t i = 0; i < data.points.size(); i += 3) data.points[i].seconds = bad;
    for (size_t i = 1; i < data.points.size(); i += 3) data.points[i].flops = bad;
    data.points[2].share_of_step = data.points[2].share_of_ceiling = bad;
    data.verdicts[0].effects[0].low = bad;
    data.memory[0].bytes[0].second = bad;
    data.rewrites[0].bytes_before = bad;
    expect_sound(data);
    data.ceilings = RooflineCeilings{118.0, bad, 2, ""};
    expect_sound(data);
    data.ceilings = RooflineCeilings{118.0, 14.0, 2, ""};
    expect_sound(data);
  }
}

TEST(Report, RowsOfTablesMayBeShortOrLong) {
  ReportData data = example_report();
  data.tables[0].rows = {{}, {"a"}, std::vector<std::string>(30, "12")};
  data.tables.push_back({"no columns", "", {}, {{"x"}}});
  data.tables.push_back({"one column", "", {"a"}, {{"x"}}});
  expect_sound(data);
}

/// Files for the test in a browser: TL_REPORT_EXAMPLE names the folder.
TEST(Report, WritesExampleFiles) {
  const char* folder = std::getenv("TL_REPORT_EXAMPLE");
  if (!folder) GTEST_SKIP() << "TL_REPORT_EXAMPLE is not set";
  const std::string base = folder;
  const ReportData data = example_report();
  write_file_atomically(base + "/report.html", render_html(data));
  write_file_atomically(base + "/report.txt", render_text(data));
  write_file_atomically(base + "/roofline.svg", panel_svg(data, Panel::roofline));
  write_file_atomically(base + "/quality.svg", panel_svg(data, Panel::quality));
}

class Png : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("PATH");
    path_ = path ? path : "";
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override {
    ::setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }
  std::string path_;
  std::string folder_ = testing::TempDir() + "tightloop-png";
};

TEST_F(Png, SaysWhatIsMissing) {
  ::setenv("PATH", folder_.c_str(), 1);
  try {
    write_png("<svg/>", folder_ + "/x.png");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
    EXPECT_NE(e.message().find("rsvg-convert"), std::string::npos);
    EXPECT_NE(e.hint().find("librsvg2-bin"), std::string::npos);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(Png, DrawsAPanel) {
  if (std::system("command -v rsvg-convert >/dev/null") != 0)
    GTEST_SKIP() << "rsvg-convert is not installed";
  const std::string file = folder_ + "/-a b.png";
  write_png(panel_svg(example_report(), Panel::quality), file, 400);
  const std::string png = read_file(file);
  EXPECT_EQ(png.substr(1, 3), "PNG");
  EXPECT_EQ(png.substr(16, 4), std::string("\0\0\x01\x90", 4));  // 400 pixels wide
  EXPECT_THROW(write_png("no picture", folder_ + "/y.png"), Error);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/y.png"));
}

}  // namespace
}  // namespace tightloop
