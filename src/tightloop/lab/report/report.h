#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tightloop/core/json.h"

namespace tightloop {

/// What the report of an experiment shows. Plain data: whoever fills it computes and formats, the
/// renderers only draw. Every text may hold anything; it is escaped where it is written. Numbers
/// that are not finite are left out of the pictures and named in the tables as given.

/// One arm of the experiment. Points, runs, memory and rewrites name their arm by `name`.
struct ReportArm {
  std::string name;   // "fused-rmsnorm"
  std::string flags;  // "--fused-rmsnorm --no-chunked-ce"
};

/// Ceilings of this device, measured.
struct RooflineCeilings {
  double peak_gflops = 0.0;  // f32 multiply-add, operands in registers
  double memory_gbs = 0.0;   // the fastest way to move bytes: reading
  int threads = 0;
  std::string how;  // "avx512, best of 12 repetitions of 0.1 s"
};

/// One op of a training step (all its calls together), or an aggregate of ops.
struct RooflinePoint {
  enum class Kind { op, aggregate };
  std::string arm;
  std::string name;   // "residual_rmsnorm"; of an aggregate "step", "forward", ...
  std::string phase;  // "forward", "backward", "optimizer"; empty for the aggregate "step"
  Kind kind = Kind::op;
  double calls = 0.0;             // of one step
  double seconds = 0.0;           // of one step, all calls
  double flops = 0.0;             // of one step, what must be computed
  double bytes = 0.0;             // of one step, what must be moved
  double share_of_step = 0.0;     // seconds / seconds of the step, 0 to 1
  double share_of_ceiling = 0.0;  // floor_seconds / seconds; above 1 when operands were in a cache
  std::vector<std::string>
      replaces;  // ops of the reference arm, of any phase, in whose place it stands
};

/// One evaluation of a run.
struct CurvePoint {
  double clock_s = 0.0;  // the train clock
  double step = 0.0;
  double metric = 0.0;
};

/// Where a run's curve meets the target, with its interval on the train clock.
struct ReportCrossing {
  double clock_s = 0.0;
  double low_s = 0.0;
  double high_s = 0.0;
  double step = 0.0;
};

struct ReportRun {
  std::string arm;
  int64_t seed = 0;
  std::string status = "ok";  // of results.csv
  std::vector<CurvePoint> curve;
  std::optional<ReportCrossing> crossing;  // empty: not reached, censored at the last clock value
};

/// A table of finished text. Columns of numbers are aligned to the right.
struct ReportTable {
  std::string title;
  std::string note;  // below the table, may be empty
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};

/// A difference to the reference arm in percent; negative is better.
struct ReportEffect {
  std::string what;  // "time to target", "steps to target", "time per step"
  double percent = 0.0;
  double low = 0.0;  // of the 90 % interval
  double high = 0.0;
};

struct ReportVerdict {
  std::string arm;
  std::string word;  // "suggestive", "inconclusive", ...
  std::string text;  // the sentence: difference, interval, n, what that can and cannot show
  std::vector<ReportEffect> effects;
};

/// Memory of one arm by purpose, bytes; purposes in the order of the bars.
struct ReportMemory {
  std::string arm;
  std::vector<std::pair<std::string, double>> bytes;
};

/// What one rewrite did to the Program of an arm, and what it claims to save.
struct ReportRewrite {
  std::string name;  // "fused-rmsnorm"
  int64_t places = 0;
  double bytes_before = 0.0, bytes_after = 0.0;  // of the ops it replaced, one micro-step
  double flops_before = 0.0, flops_after = 0.0;
  std::vector<std::string> lines;  // "4 x add + scaled_add + rmsnorm -> residual_rmsnorm"
};

struct ReportData {
  std::string title;            // "Template G on stories: ..."
  std::string metric;           // "val_bpb"
  double threshold = 0.0;       // target of the metric; lower is better
  std::string answer;           // the headline after "val_bpb <= 1.2345: ", one short sentence
  std::vector<ReportArm> arms;  // in the order of the legend; the first is the reference
  std::vector<ReportRun> runs;
  std::optional<double> floor;      // the least value of the metric that is possible, when known
  std::optional<double> metric_sd;  // of repeats at equal step; draws a band of 2 standard errors
  std::string metric_sd_source;     // "8 repeats, 7 degrees of freedom"
  std::optional<RooflineCeilings> ceilings;
  std::vector<RooflinePoint> points;
  std::string roofline_reference, roofline_candidate;  // arms; empty: the first and the last
  std::vector<ReportVerdict> verdicts;
  std::vector<ReportTable> tables;  // the first directly below the headline, the others at the end
  std::vector<ReportMemory> memory;
  std::vector<ReportRewrite> rewrites;
  std::vector<std::string> commands;                         // to reproduce, as typed
  std::vector<std::pair<std::string, std::string>> machine;  // {"CPU", "..."}, {"commit", "..."}
  std::vector<std::string> notes;                            // caveats, in words
};

enum class Panel { roofline, quality };

/// The whole report as one HTML file that needs nothing else: inline style, script and pictures,
/// light and dark, phone and print. Sections without data are left out.
std::string render_html(const ReportData& data);

/// The same in at most 80 columns of plain text (only commands may be longer); ends with a line
/// break.
std::string render_text(const ReportData& data);

/// One panel as a self-contained SVG file; with a sentence instead of marks when it has no data.
std::string panel_svg(const ReportData& data, Panel panel);

/// Everything that is drawn, as JSON; the HTML file holds it in <script id="report-data">.
OrderedJson report_json(const ReportData& data);

/// "val_bpb ≤ 1.2345", the first words of a report; empty without a metric.
std::string goal_text(const ReportData& data);

/// Draws an SVG into a PNG file, `width` pixels wide, by the program rsvg-convert (librsvg).
/// Error{unsupported} with a hint when it is not installed, Error{io} when it fails.
void write_png(const std::string& svg, const std::string& path, int width = 1600);

}  // namespace tightloop
