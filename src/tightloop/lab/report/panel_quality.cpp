#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "tightloop/lab/report/panels.h"

namespace tightloop {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double last_clock(const ReportRun& run) {
  double last = 0.0;
  for (const CurvePoint& p : run.curve) {
    if (std::isfinite(p.clock_s)) last = std::max(last, p.clock_s);
  }
  return last;
}

std::string run_name(const ReportRun& run) {
  return fmt::format("{}, seed {}", run.arm, run.seed);
}

/// Arms that have runs: those of `arms` in order, then others as they come.
std::vector<std::string> arms_with_runs(const ReportData& data) {
  std::vector<std::string> names;
  const auto has_runs = [&](const std::string& arm) {
    return std::any_of(data.runs.begin(), data.runs.end(),
                       [&](const ReportRun& r) { return r.arm == arm; });
  };
  for (const ReportArm& arm : data.arms) {
    if (has_runs(arm.name)) names.push_back(arm.name);
  }
  for (const ReportRun& run : data.runs) {
    if (std::find(names.begin(), names.end(), run.arm) == names.end()) names.push_back(run.arm);
  }
  return names;
}

bool drawable(const ReportCrossing& c) {
  return std::isfinite(c.clock_s) && std::isfinite(c.low_s) && std::isfinite(c.high_s);
}

}  // namespace

Svg draw_quality(const ReportData& data, PanelWidth width) {
  const bool phone = width == PanelWidth::phone;
  const std::vector<std::string> arms = arms_with_runs(data);
  bool any_crossing = false;
  double x_high = 0.0;
  int64_t marks = 0;
  for (const ReportRun& run : data.runs) {
    x_high = std::max(x_high, last_clock(run));
    any_crossing = any_crossing || (run.crossing && drawable(*run.crossing));
    marks += static_cast<int64_t>(run.curve.size());
  }
  const double row_height = phone ? 40 : 30;
  const double strip = any_crossing ? 62 + row_height * static_cast<double>(arms.size()) : 0.0;
  const double plot = phone ? 300 : 360;
  // The legend, in as many rows as it needs.
  struct Key {
    std::string text;
    size_t tint;
    Point at;
  };
  const double total = phone ? 380 : 920;
  std::vector<Key> keys;
  Point next{phone ? 8.0 : 58.0, 16.0};
  for (const std::string& arm : arms) {
    const std::string text = cut(arm, phone ? 150 : 240);
    const double needed = 42 + text_width(text, kChartFont);
    if (next.x + needed > total && !keys.empty()) next = {phone ? 8.0 : 58.0, next.y + 17.0};
    keys.push_back({text, arm_index(data, arm), next});
    next.x += needed;
  }
  const double top = next.y + 38.0;
  Svg svg(phone ? "b-phone" : "b", total, top + plot + 44 + strip,
          fmt::format("{} against seconds of training, for every run", data.metric));
  if (x_high <= 0.0) {
    draw_empty(svg, "no run has an evaluation");
    return svg;
  }

  // The metric's range is the neighbourhood of the target: from the lowest value to five times as
  // far above. Curves run in from the top.
  double low = data.threshold, high = data.threshold;
  if (!std::isfinite(low)) low = kInfinity, high = -kInfinity;
  for (const ReportRun& run : data.runs) {
    for (const CurvePoint& p : run.curve) {
      if (!std::isfinite(p.metric) || !std::isfinite(p.clock_s)) continue;
      low = std::min(low, p.metric);
      if (p.clock_s >= 0.05 * x_high) high = std::max(high, p.metric);
    }
  }
  // The known floor belongs into the picture unless it would squeeze the curves.
  const bool has_floor = data.floor && std::isfinite(*data.floor);
  if (has_floor && *data.floor >= low - 0.6 * (high - low)) low = std::min(low, *data.floor);
  if (std::isfinite(data.threshold) && data.threshold > low)
    high = std::min(high, low + 5.0 * (data.threshold - low));
  const double left = phone ? 44 : 58, right = svg.width() - (phone ? 10 : 18);
  const double bottom = top + plot;
  const Axis x = nice_axis(Axis::Scale::linear, 0.0, x_high, left, right);
  const double pad = 0.03 * (high - low);
  const Axis y = nice_axis(Axis::Scale::linear, low - pad, high + pad, bottom, top);
  draw_axes(svg, x, y, phone ? 5 : 10, 8);
  svg.text({right, bottom + 34}, "seconds of training", "soft", Anchor::end);
  svg.text({left - (phone ? 36 : 46), top - 10}, cut(data.metric, 200), "soft");

  const auto level = [&](double value, std::string_view classes, const std::string& text) {
    if (!std::isfinite(value) || value < y.low || value > y.high) return;
    svg.line({left, y.at(value)}, {right, y.at(value)}, classes);
    svg.text({left + 6, y.at(value) - 5}, text, "strong");
  };

  svg.open_clipped(left, top, right - left, bottom - top);
  for (const std::string& arm : arms) {
    const size_t tint = arm_index(data, arm);
    const MeanCurve mean = mean_curve(data, arm);
    svg.open_group(color(tint));
    if (data.metric_sd && std::isfinite(*data.metric_sd) && mean.runs > 1) {
      const double half = 2.0 * *data.metric_sd / std::sqrt(mean.runs);
      std::vector<Point> band;
      for (const CurvePoint& p : mean.points)
        band.push_back({x.at(p.clock_s), y.at(p.metric + half)});
      for (auto it = mean.points.rbegin(); it != mean.points.rend(); ++it)
        band.push_back({x.at(it->clock_s), y.at(it->metric - half)});
      svg.polygon(band, "area");
    }
    for (const ReportRun& run : data.runs) {
      if (run.arm != arm) continue;
      std::vector<Point> line;
      for (const CurvePoint& p : run.curve) line.push_back({x.at(p.clock_s), y.at(p.metric)});
      svg.polyline(line, mean.runs > 1 ? "ln thin" : "ln thick");
    }
    std::vector<Point> line;
    for (const CurvePoint& p : mean.points) line.push_back({x.at(p.clock_s), y.at(p.metric)});
    svg.polyline(line, "ln thick");
    svg.close();
  }
  // Where to hover: every evaluation, thinned when there are very many.
  const int64_t every = std::max<int64_t>(1, marks / 2000);
  for (const ReportRun& run : data.runs) {
    const std::string tint = color(arm_index(data, run.arm));
    for (size_t i = 0; i < run.curve.size(); i += static_cast<size_t>(every)) {
      const CurvePoint& p = run.curve[i];
      const Point at{x.at(p.clock_s), y.at(p.metric)};
      if (!std::isfinite(at.x) || !std::isfinite(at.y) || p.metric > y.high) continue;
      svg.open_mark(at,
                    fmt::format("{}\n{} {} at step {}, {} s", run_name(run), data.metric,
                                short_number(p.metric, 5), short_number(p.step, 6),
                                short_number(p.clock_s, 4)),
                    tint);
      svg.shape(MarkShape::circle, at, 2.2, "spot");
      svg.close();
    }
  }
  svg.close();
  if (has_floor) {
    const std::string text = fmt::format("known floor {:.5g}", *data.floor);
    if (*data.floor < y.low)
      svg.text({left + 6, bottom - 6}, text + " is below", "soft");
    else
      level(*data.floor, "floor", text);
  }
  level(data.threshold, "target", fmt::format("target {:.6g}", data.threshold));

  const auto crossing_tip = [&](const ReportRun& run, const ReportCrossing& c) {
    return fmt::format("{}\ntarget reached at {} s (90 % interval {} to {})\nstep {}",
                       run_name(run), short_number(c.clock_s, 4), short_number(c.low_s, 4),
                       short_number(c.high_s, 4), short_number(c.step, 5));
  };
  for (const ReportRun& run : data.runs) {
    if (!run.crossing || !drawable(*run.crossing) || !std::isfinite(data.threshold)) continue;
    const ReportCrossing& c = *run.crossing;
    const Point at{x.clamped(c.clock_s), y.clamped(data.threshold)};
    const size_t tint = arm_index(data, run.arm);
    svg.open_mark(at, crossing_tip(run, c), color(tint));
    svg.line({x.clamped(c.low_s), at.y}, {x.clamped(c.high_s), at.y}, "ln thick");
    svg.shape(shape_of(tint), at, 4.5, "open");
    svg.close();
  }

  for (const Key& key : keys) {
    svg.open_group(color(key.tint));
    svg.line({key.at.x, key.at.y - 4}, {key.at.x + 20, key.at.y - 4}, "ln thick");
    svg.shape(shape_of(key.tint), {key.at.x + 10, key.at.y - 4}, 4, "open");
    svg.text({key.at.x + 26, key.at.y}, key.text, "tint");
    svg.close();
  }
  if (!any_crossing) return svg;

  // The crossings, enlarged: a row per arm, a mark per run.
  double first = kInfinity, final = -kInfinity;
  for (const ReportRun& run : data.runs) {
    if (!run.crossing || !drawable(*run.crossing)) continue;
    first = std::min({first, run.crossing->low_s, run.crossing->clock_s});
    final = std::max({final, run.crossing->high_s, run.crossing->clock_s});
  }
  const double strip_top = bottom + 44 + 24, names = phone ? 10 : 180, side = phone ? 10 : 150;
  const double strip_bottom = strip_top + row_height * static_cast<double>(arms.size());
  const Axis t = nice_axis(Axis::Scale::linear, first, final, names, svg.width() - side);
  svg.text({phone ? 8 : names, strip_top - 10}, "seconds to the target", "strong");
  for (const Tick& tick : ticks(t, phone ? 4 : 7)) {
    svg.line({t.at(tick.value), strip_top}, {t.at(tick.value), strip_bottom}, "grid");
    svg.text({t.at(tick.value), strip_bottom + 15}, tick.label, "tick", Anchor::middle);
  }
  svg.line({t.from_px, strip_bottom}, {t.to_px, strip_bottom}, "axis");
  double reference_mean = std::nan("");
  for (size_t i = 0; i < arms.size(); ++i) {
    const size_t tint = arm_index(data, arms[i]);
    std::vector<const ReportRun*> runs, reached;
    for (const ReportRun& run : data.runs) {
      if (run.arm != arms[i]) continue;
      runs.push_back(&run);
      if (run.crossing && drawable(*run.crossing)) reached.push_back(&run);
    }
    const double row_top = strip_top + row_height * static_cast<double>(i);
    const double middle = phone ? row_top + 27 : row_top + row_height / 2;
    double mean = 0.0;
    for (const ReportRun* run : reached)
      mean += run->crossing->clock_s / static_cast<double>(reached.size());
    if (i == 0 && !reached.empty()) reference_mean = t.at(mean);

    std::string result =
        reached.empty() ? "not reached" : fmt::format("{} s", short_number(mean, 4));
    if (reached.size() < runs.size() || runs.size() > 1)
      result += reached.empty()
                    ? fmt::format(" by {} run{}", runs.size(), runs.size() > 1 ? "s" : "")
                    : fmt::format(", {} of {} runs", reached.size(), runs.size());
    svg.open_group(color(tint));
    if (phone) {
      svg.text({10, row_top + 13}, cut(arms[i], 190), "tint");
      svg.text({svg.width() - 10, row_top + 13}, result, "soft", Anchor::end);
    } else {
      svg.text({names - 14, middle + 4}, cut(arms[i], names - 22), "tint", Anchor::end);
      svg.text({svg.width() - side + 12, middle + 4}, result, "soft");
    }
    for (size_t k = 0; k < reached.size(); ++k) {
      const ReportCrossing& c = *reached[k]->crossing;
      const double spread = std::min(5.0, 14.0 / static_cast<double>(reached.size()));
      const double offset =
          spread * (static_cast<double>(k) - 0.5 * static_cast<double>(reached.size() - 1));
      const Point p{t.clamped(c.clock_s), middle + offset};
      svg.open_mark(p, crossing_tip(*reached[k], c), color(tint));
      svg.line({t.clamped(c.low_s), p.y}, {t.clamped(c.high_s), p.y}, "ln");
      svg.shape(shape_of(tint), p, 4, "open");
      svg.close();
    }
    if (!reached.empty())
      svg.line({t.at(mean), middle - 11}, {t.at(mean), middle + 11}, "ln thick");
    svg.close();
  }
  svg.line({reference_mean, strip_top}, {reference_mean, strip_bottom}, "floor");
  return svg;
}

MeanCurve mean_curve(const ReportData& data, const std::string& arm) {
  struct Sum {
    double clock = 0.0, metric = 0.0;
    int n = 0;
  };
  std::map<double, Sum> by_step;
  MeanCurve mean;
  for (const ReportRun& run : data.runs) {
    if (run.arm != arm || run.curve.empty()) continue;
    ++mean.runs;
    for (const CurvePoint& p : run.curve) {
      if (!std::isfinite(p.step) || !std::isfinite(p.clock_s) || !std::isfinite(p.metric)) continue;
      Sum& sum = by_step[p.step];
      sum.clock += p.clock_s;
      sum.metric += p.metric;
      ++sum.n;
    }
  }
  if (mean.runs < 2) return mean;
  for (const auto& [step, sum] : by_step) {
    if (sum.n == mean.runs) mean.points.push_back({sum.clock / sum.n, step, sum.metric / sum.n});
  }
  return mean;
}

}  // namespace tightloop
