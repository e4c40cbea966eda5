#include "tightloop/lab/report/panels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <fmt/format.h>

namespace tightloop {
namespace {

constexpr double kFont = 12.0;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Box {
  double left = 0.0, top = 0.0, right = 0.0, bottom = 0.0;
  bool overlaps(const Box& o) const {
    return left < o.right && o.left < right && top < o.bottom && o.top < bottom;
  }
  bool inside(const Box& o) const {
    return left >= o.left && right <= o.right && top >= o.top && bottom <= o.bottom;
  }
};

std::string color(size_t index) {
  return fmt::format("c{}", index % kChartColors);
}

MarkShape shape_of(size_t index) {
  return static_cast<MarkShape>(index % 4);
}

/// The text cut to a width in pixels, with an ellipsis.
std::string cut(std::string_view text, double width) {
  std::string result = clean_text(text);
  std::replace(result.begin(), result.end(), '\n', ' ');
  if (text_width(result, kFont) <= width) return result;
  while (!result.empty() && text_width(result, kFont) > width - 8.0) {
    while (!result.empty() && (static_cast<uint8_t>(result.back()) & 0xC0) == 0x80)
      result.pop_back();
    if (!result.empty()) result.pop_back();
  }
  return result + "…";
}

/// Gridlines and labels of both axes around a plot area.
void draw_axes(
    Svg& svg, const Axis& x, const Axis& y, int x_wanted, int y_wanted, bool x_grid = true) {
  const double left = x.from_px, right = x.to_px, bottom = y.from_px, top = y.to_px;
  for (const Tick& t : ticks(x, x_wanted)) {
    const double at = x.at(t.value);
    if (x_grid) svg.line({at, top}, {at, bottom}, t.label.empty() ? "minor" : "grid");
    if (!t.label.empty()) svg.text({at, bottom + 15}, t.label, "tick", Anchor::middle);
  }
  for (const Tick& t : ticks(y, y_wanted)) {
    const double at = y.at(t.value);
    svg.line({left, at}, {right, at}, t.label.empty() ? "minor" : "grid");
    if (!t.label.empty()) svg.text({left - 6, at + 4}, t.label, "tick", Anchor::end);
  }
  svg.line({left, bottom}, {right, bottom}, "axis");
  svg.line({left, bottom}, {left, top}, "axis");
}

void draw_empty(Svg& svg, std::string_view sentence) {
  svg.text({svg.width() / 2, svg.height() / 2}, sentence, "soft", Anchor::middle);
}

// ---- Panel A ----

/// Where a point stands: GFLOP/s over FLOP per byte.
struct Placed {
  const RooflinePoint* point = nullptr;
  double intensity = 0.0;  // 0: no FLOPs
  double gflops = 0.0;
  Point px;
  double radius = 0.0;
  bool candidate = false;
};

size_t phase_color(const std::string& phase) {
  return phase == "forward" ? 1 : phase == "backward" ? 2 : phase == "optimizer" ? 3 : 0;
}

std::string tip_of(const RooflinePoint& p, const RooflineCeilings& c) {
  const double s = p.seconds;
  std::string tip = p.name;
  if (!p.phase.empty() && p.phase != p.name) tip += ", " + p.phase;
  tip += "\n" + p.arm;
  tip += fmt::format("\n{} a step in {} calls, {:.1f} % of the step", human_seconds(s),
                     short_number(p.calls), 100.0 * p.share_of_step);
  tip += fmt::format("\n{} moved, {}", human_bytes_text(p.bytes), human_flops(p.flops));
  tip += fmt::format("\n{} GB/s, {} GFLOP/s", short_number(1e-9 * p.bytes / s),
                     short_number(1e-9 * p.flops / s));
  tip += fmt::format("\n{:.0f} % of its ceiling ({})", 100.0 * p.share_of_ceiling, bound_of(p, c));
  if (p.share_of_ceiling > 1.005) tip += ": operands were in a cache";
  if (p.flops == 0.0) tip += "\nno FLOPs: drawn at the left edge";
  if (!p.replaces.empty()) tip += fmt::format("\nreplaces {}", fmt::join(p.replaces, ", "));
  return tip;
}

Svg draw_roofline(const ReportData& data, PanelWidth width) {
  const bool phone = width == PanelWidth::phone;
  Svg svg(phone ? "a-phone" : "a", phone ? 380 : 920, phone ? 470 : 560,
          "Roofline of the training step: GFLOP/s over FLOP per byte, both logarithmic");
  const std::string reference = roofline_reference(data), candidate = roofline_candidate(data);
  std::vector<Placed> placed;
  for (const RooflinePoint& p : data.points) {
    if (!is_drawable(p) || (p.arm != reference && p.arm != candidate)) continue;
    Placed here;
    here.point = &p;
    here.intensity = p.bytes > 0.0 ? p.flops / p.bytes : kInfinity;
    here.gflops = 1e-9 * p.flops / p.seconds;
    here.candidate = p.arm == candidate && candidate != reference;
    placed.push_back(here);
  }
  const bool has_ceilings =
      data.ceilings && data.ceilings->peak_gflops > 0.0 && data.ceilings->memory_gbs > 0.0 &&
      std::isfinite(data.ceilings->peak_gflops) && std::isfinite(data.ceilings->memory_gbs);
  if (placed.empty() || !has_ceilings) {
    draw_empty(svg, placed.empty() ? "no profile of the step was recorded"
                                   : "the ceilings of this device were not measured");
    return svg;
  }
  const RooflineCeilings& c = *data.ceilings;
  const double peak = c.peak_gflops, memory = c.memory_gbs, ridge = peak / memory;

  // Domains. Ops without FLOPs stand at the left edge, as far below the memory slope there as
  // their share of the memory ceiling says.
  double x_low = ridge / 30.0, x_high = ridge * 8.0;
  for (const Placed& p : placed) {
    if (p.point->flops == 0.0) continue;
    x_low = std::min(x_low, std::max(p.intensity, ridge * 1e-6));
    if (std::isfinite(p.intensity))
      x_high = std::max(x_high, std::min(1.3 * p.intensity, ridge * 1e6));
  }
  const double left = phone ? 44 : 58, right = svg.width() - (phone ? 10 : 18);
  const double top = phone ? 82 : 54, bottom = svg.height() - 46;
  const Axis x = nice_axis(Axis::Scale::log, 0.7 * x_low, x_high, left, right);
  double y_low = peak, y_high = 1.15 * peak;
  for (Placed& p : placed) {
    if (p.point->flops == 0.0) p.gflops = 1e-9 * p.point->bytes / p.point->seconds * x.low;
    if (p.gflops > 0.0) y_low = std::min(y_low, std::max(p.gflops, peak * 1e-6));
    y_high = std::max(y_high, std::min(p.gflops, peak * 1e3));
  }
  const Axis y = nice_axis(Axis::Scale::log, 0.8 * y_low, y_high, bottom, top);

  draw_axes(svg, x, y, phone ? 4 : 8, 6);
  svg.text({right, bottom + 34}, "FLOP per byte moved", "soft", Anchor::end);
  svg.text({left - (phone ? 36 : 46), top - 10}, "GFLOP/s", "soft");

  // The roof, and its names along it.
  const double roof_left = y.clamped(memory * x.low), ridge_x = x.clamped(ridge);
  std::vector<Point> roof;
  if (memory * x.low >= y.low) {
    roof.push_back({x.from_px, roof_left});
  } else {
    roof.push_back({x.clamped(y.low / memory), y.from_px});
  }
  roof.push_back({ridge_x, y.at(peak)});
  roof.push_back({x.to_px, y.at(peak)});
  svg.polyline(roof, "roof");
  const double slope =
      std::atan2(roof[1].y - roof[0].y, roof[1].x - roof[0].x) * 180.0 / 3.14159265358979;
  std::vector<Box> taken;
  const auto reserve = [&](const Box& box) { taken.push_back(box); };
  {
    const std::string text = phone ? fmt::format("{} GB/s", short_number(memory))
                                   : fmt::format("memory, measured: {} GB/s", short_number(memory));
    const double share = 0.42;
    const Point at{roof[0].x + share * (roof[1].x - roof[0].x),
                   roof[0].y + share * (roof[1].y - roof[0].y)};
    const double turn = slope * 3.14159265358979 / 180.0;
    svg.text({at.x + 7 * std::sin(turn), at.y - 7 * std::cos(turn)}, text, "strong", Anchor::middle,
             slope);
    const double half = 0.5 * text_width(text, kFont);
    for (double d = -half; d <= half; d += 6.0) {
      const Point q{at.x + d * std::cos(turn) + 11 * std::sin(turn),
                    at.y + d * std::sin(turn) - 11 * std::cos(turn)};
      reserve({q.x - 7, q.y - 7, q.x + 7, q.y + 7});
    }
    const std::string peak_text =
        phone ? fmt::format("{} GFLOP/s", short_number(peak))
              : fmt::format("multiply-add peak, measured: {} GFLOP/s", short_number(peak));
    svg.text({right - 4, y.at(peak) - 7}, peak_text, "strong", Anchor::end);
    reserve({right - 4 - text_width(peak_text, kFont), y.at(peak) - 20, right, y.at(peak) - 2});
  }

  for (size_t i = 1; i < roof.size(); ++i) {
    for (double share = 0.0; share <= 1.0; share += 0.01) {
      const Point q{roof[i - 1].x + share * (roof[i].x - roof[i - 1].x),
                    roof[i - 1].y + share * (roof[i].y - roof[i - 1].y)};
      reserve({q.x - 2, q.y - 2, q.x + 2, q.y + 2});
    }
  }

  // Places and sizes; the large ones first, so that small ones stay visible.
  const double full = phone ? 22.0 : 32.0;  // radius of an op that takes the whole step
  for (Placed& p : placed) {
    p.px = {x.clamped(p.point->flops == 0.0 ? x.low : p.intensity), y.clamped(p.gflops)};
    if (p.gflops <= 0.0) p.px.y = y.from_px;
    const double share = std::clamp(p.point->share_of_step, 0.0, 1.0);
    p.radius = p.point->kind == RooflinePoint::Kind::aggregate
                   ? 5.0
                   : std::max(2.4, full * std::sqrt(std::isfinite(share) ? share : 0.0));
  }
  std::stable_sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    const bool aggregate_a = a.point->kind == RooflinePoint::Kind::aggregate;
    const bool aggregate_b = b.point->kind == RooflinePoint::Kind::aggregate;
    if (aggregate_a != aggregate_b) return aggregate_b;
    return a.radius > b.radius;
  });

  // Arrows where the work changed: replaced ops to the op in their place, and aggregates.
  std::map<std::pair<std::string, std::string>, const Placed*> before;  // (phase, name)
  for (const Placed& p : placed) {
    if (!p.candidate) before[{p.point->phase, p.point->name}] = &p;
  }
  struct Arrow {
    const Placed* from;
    const Placed* to;
  };
  std::vector<Arrow> arrows;
  for (const Placed& p : placed) {
    if (!p.candidate) continue;
    const RooflinePoint& now = *p.point;
    for (const std::string& name : now.replaces) {
      if (const auto it = before.find({now.phase, name}); it != before.end() && name != now.name)
        arrows.push_back({it->second, &p});
    }
    const auto it = before.find({now.phase, now.name});
    if (it == before.end()) continue;
    const RooflinePoint& then = *it->second->point;
    const bool changed = std::fabs(now.bytes - then.bytes) > 0.01 * then.bytes ||
                         std::fabs(now.flops - then.flops) > 0.01 * then.flops;
    if (changed) arrows.push_back({it->second, &p});
  }

  for (const Placed& p : placed) {
    const bool aggregate = p.point->kind == RooflinePoint::Kind::aggregate;
    const std::string tint = color(phase_color(p.point->phase));
    svg.open_mark(p.px, tip_of(*p.point, c), tint);
    svg.shape(aggregate ? MarkShape::diamond : MarkShape::circle, p.px, p.radius,
              p.candidate ? (aggregate ? "dot" : "dot fade") : (aggregate ? "open" : "ring"));
    if (p.radius < 7.0) svg.shape(MarkShape::circle, p.px, 7.0, "hit");
    svg.close();
  }
  for (const Arrow& a : arrows) {
    // From rim to rim; nothing when the two nearly coincide.
    const double dx = a.to->px.x - a.from->px.x, dy = a.to->px.y - a.from->px.y;
    const double length = std::hypot(dx, dy);
    const double r0 = std::min(a.from->radius, 0.4 * length);
    const double r1 = std::min(a.to->radius + 1.0, 0.4 * length);
    if (length < 6.0) continue;
    svg.arrow({a.from->px.x + dx / length * r0, a.from->px.y + dy / length * r0},
              {a.to->px.x - dx / length * r1, a.to->px.y - dy / length * r1},
              color(phase_color(a.to->point->phase)));
  }

  // Names beside the marks that matter, where there is room.
  for (const Placed& p : placed) {
    const double r = 0.6 * p.radius;
    reserve({p.px.x - r, p.px.y - r, p.px.x + r, p.px.y + r});
  }
  std::vector<const Placed*> named;
  for (const Placed& p : placed) {
    const bool last = p.candidate || candidate == reference || candidate.empty();
    const bool aggregate = p.point->kind == RooflinePoint::Kind::aggregate;
    const bool gone = !last && std::none_of(placed.begin(), placed.end(), [&](const Placed& q) {
      return q.candidate && q.point->name == p.point->name && q.point->phase == p.point->phase;
    });
    if ((last || gone) && (aggregate || p.point->share_of_step >= (phone ? 0.05 : 0.012) ||
                           !p.point->replaces.empty()))
      named.push_back(&p);
  }
  std::stable_sort(named.begin(), named.end(), [](const Placed* a, const Placed* b) {
    const auto rank = [](const Placed* p) {
      return p->point->kind == RooflinePoint::Kind::aggregate ? 2.0
             : p->point->replaces.empty()                     ? p->point->share_of_step
                                                              : 1.0 + p->point->share_of_step;
    };
    return rank(a) > rank(b);
  });
  const Box area{left, top - 14, right, bottom};
  for (const Placed* p : named) {
    const std::string name = cut(p->point->name, 150);
    const double w = text_width(name, kFont), r = p->radius + 3.0, h = kFont;
    const Point at = p->px;
    struct Try {
      Point text;
      Anchor anchor;
      Box box;
      bool far = false;  // needs a line to its mark
    };
    std::vector<Try> tries;
    for (const double dy : {0.0, -0.7 * r - 4, 0.7 * r + 6, -r - 16, r + 18}) {
      const double base = at.y + dy + 4;
      tries.push_back(
          {{at.x + r, base}, Anchor::start, {at.x + r, base - h, at.x + r + w, base + 3}});
      tries.push_back(
          {{at.x - r, base}, Anchor::end, {at.x - r - w, base - h, at.x - r, base + 3}});
    }
    for (const double base : {at.y - r - 2, at.y + r + h - 2})
      tries.push_back(
          {{at.x, base}, Anchor::middle, {at.x - w / 2, base - h, at.x + w / 2, base + 3}});
    for (const double distance : {34.0, 50.0, 68.0, 90.0}) {
      for (const double degrees : {60.0, 90.0, 35.0, 120.0, -60.0, 145.0, -90.0, 10.0, -120.0}) {
        const double turn = degrees * 3.14159265358979 / 180.0;
        const Point q{at.x + (r + distance) * std::cos(turn),
                      at.y + (r + distance) * std::sin(turn)};
        tries.push_back({{q.x, q.y + 4},
                         Anchor::middle,
                         {q.x - w / 2, q.y + 4 - h, q.x + w / 2, q.y + 7},
                         true});
      }
    }
    for (const Try& t : tries) {
      const bool free =
          t.box.inside(area) &&
          std::none_of(taken.begin(), taken.end(), [&](const Box& b) { return b.overlaps(t.box); });
      if (!free) continue;
      if (t.far) {
        const double y_end = t.text.y < at.y ? t.box.bottom : t.box.top;
        svg.open_group(color(phase_color(p->point->phase)));
        svg.line(at, {t.text.x, y_end}, "ln thin");
        svg.close();
      }
      svg.text(t.text, name,
               fmt::format("tint halo {}{}", color(phase_color(p->point->phase)),
                           p->point->kind == RooflinePoint::Kind::aggregate ? " strong" : ""),
               t.anchor);
      reserve(t.box);
      break;
    }
  }

  // Legend.
  double at = phone ? 8 : left, row = 16;
  const auto entry = [&](std::string_view text, auto&& draw) {
    const double needed = 18 + text_width(text, kFont) + 14;
    if (at + needed > right + 14) {
      at = phone ? 8 : left;
      row += 18;
    }
    draw(Point{at + 6, row - 4});
    svg.text({at + 16, row}, text, "soft");
    at += needed;
  };
  const auto mark = [&](MarkShape shape, size_t tint, std::string_view kind) {
    return [&svg, shape, tint, kind](Point p) {
      svg.open_group(color(tint));
      svg.shape(shape, p, 5, kind);
      svg.close();
    };
  };
  const double most = phone ? 150 : 220;
  if (!reference.empty()) entry(cut(reference, most), mark(MarkShape::circle, 0, "ring"));
  if (!candidate.empty() && candidate != reference)
    entry(cut(candidate, most), mark(MarkShape::circle, 0, "dot fade"));
  for (const char* phase : {"forward", "backward", "optimizer"})
    entry(phase, mark(MarkShape::square, phase_color(phase), "dot"));
  entry("whole part", mark(MarkShape::diamond, 0, "dot"));
  if (!phone) svg.text({right, row}, "area: share of the step's time", "soft", Anchor::end);
  return svg;
}

// ---- Panel B ----

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
    const double needed = 42 + text_width(text, kFont);
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
  if (data.floor && std::isfinite(*data.floor)) low = std::min(low, *data.floor);
  for (const ReportRun& run : data.runs) {
    for (const CurvePoint& p : run.curve) {
      if (!std::isfinite(p.metric) || !std::isfinite(p.clock_s)) continue;
      low = std::min(low, p.metric);
      if (p.clock_s >= 0.05 * x_high) high = std::max(high, p.metric);
    }
  }
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
  if (data.floor) level(*data.floor, "floor", fmt::format("known floor {:.6g}", *data.floor));
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

}  // namespace

std::string roofline_reference(const ReportData& data) {
  if (!data.roofline_reference.empty()) return data.roofline_reference;
  for (const ReportArm& arm : data.arms) {
    for (const RooflinePoint& p : data.points) {
      if (p.arm == arm.name) return arm.name;
    }
  }
  return data.points.empty() ? "" : data.points.front().arm;
}

std::string roofline_candidate(const ReportData& data) {
  if (!data.roofline_candidate.empty()) return data.roofline_candidate;
  for (auto arm = data.arms.rbegin(); arm != data.arms.rend(); ++arm) {
    for (const RooflinePoint& p : data.points) {
      if (p.arm == arm->name) return arm->name;
    }
  }
  return data.points.empty() ? "" : data.points.back().arm;
}

size_t arm_index(const ReportData& data, const std::string& arm) {
  const auto it = std::find_if(data.arms.begin(), data.arms.end(),
                               [&](const ReportArm& a) { return a.name == arm; });
  return it == data.arms.end() ? 0 : static_cast<size_t>(it - data.arms.begin());
}

bool is_drawable(const RooflinePoint& p) {
  return std::isfinite(p.seconds) && p.seconds > 0.0 && std::isfinite(p.flops) &&
         std::isfinite(p.bytes) && p.flops >= 0.0 && p.bytes >= 0.0 && p.flops + p.bytes > 0.0;
}

std::string_view bound_of(const RooflinePoint& p, const RooflineCeilings& c) {
  return p.flops * c.memory_gbs > p.bytes * c.peak_gflops ? "compute" : "memory";
}

bool holds_numbers(const ReportTable& table, size_t column) {
  if (column == 0) return false;
  int64_t numbers = 0, words = 0;
  for (const std::vector<std::string>& row : table.rows) {
    if (column >= row.size() || row[column].empty()) continue;
    const std::string& cell = row[column];
    const size_t first = cell.find_first_not_of("+-<>~ ");
    const bool number =
        first != std::string::npos && first < 3 && cell[first] >= '0' && cell[first] <= '9';
    ++(number || cell == "n/a" || cell == "-" ? numbers : words);
  }
  return numbers >= words;
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

Svg draw_panel(const ReportData& data, Panel panel, PanelWidth width) {
  return panel == Panel::roofline ? draw_roofline(data, width) : draw_quality(data, width);
}

Svg draw_effects(const ReportData& data, PanelWidth width) {
  const bool phone = width == PanelWidth::phone;
  struct Row {
    const ReportVerdict* verdict;
    const ReportEffect* effect;
    bool first;
  };
  std::vector<Row> rows;
  double low = 0.0, high = 0.0;
  for (const ReportVerdict& v : data.verdicts) {
    bool first = true;
    for (const ReportEffect& e : v.effects) {
      if (!std::isfinite(e.percent) || !std::isfinite(e.low) || !std::isfinite(e.high)) continue;
      rows.push_back({&v, &e, first});
      first = false;
      low = std::min({low, e.low, e.percent});
      high = std::max({high, e.high, e.percent});
    }
  }
  // One wide interval must not flatten the others: beyond this it is cut, with an arrow.
  double reach = 5.0;
  for (const Row& row : rows) reach = std::max(reach, 2.5 * std::fabs(row.effect->percent));
  low = std::max(low, -reach);
  high = std::min(high, reach);

  const double row_height = phone ? 38 : 24, top = phone ? 12 : 14;
  const double bottom = top + row_height * static_cast<double>(rows.size());
  Svg svg(phone ? "c-phone" : "c", phone ? 380 : 920, bottom + 40,
          "Differences to the reference in percent, with 95 % intervals");
  const double left = phone ? 10 : 270, right = svg.width() - (phone ? 10 : 190);
  const Axis x = nice_axis(Axis::Scale::linear, low, high, left, right);
  for (const Tick& t : ticks(x, phone ? 5 : 8)) {
    svg.line({x.at(t.value), top}, {x.at(t.value), bottom}, "grid");
    svg.text({x.at(t.value), bottom + 15}, t.value > 0.0 ? "+" + t.label : t.label, "tick",
             Anchor::middle);
  }
  svg.line({x.at(0.0), top - 4}, {x.at(0.0), bottom}, "axis");
  svg.text({right, bottom + 32}, "% against the reference; left is better", "soft", Anchor::end);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto& [verdict, effect, first_row] = rows[i];
    const size_t tint = arm_index(data, verdict->arm);
    const double row_top = top + row_height * static_cast<double>(i);
    const double middle = row_top + (phone ? 27 : row_height / 2);
    const std::string value =
        fmt::format("{:+.1f} % [{:+.1f}, {:+.1f}]", effect->percent, effect->low, effect->high);
    if (!phone && first_row && i > 0) svg.line({10, row_top}, {svg.width() - 10, row_top}, "grid");
    svg.open_group(color(tint));
    if (phone) {
      svg.text({10, row_top + 13}, cut(verdict->arm + ", " + effect->what, 215), "tint");
      svg.text({370, row_top + 13}, value, "soft", Anchor::end);
    } else {
      if (first_row) svg.text({10, middle + 4}, cut(verdict->arm, 130), "tint");
      svg.text({left - 14, middle + 4}, cut(effect->what, 110), "", Anchor::end);
      svg.text({right + 14, middle + 4}, value, "soft");
    }
    const Point at{x.clamped(effect->percent), middle};
    svg.open_mark(at, fmt::format("{}: {}\n{}", verdict->arm, effect->what, value), color(tint));
    const Point from{x.clamped(effect->low), middle}, to{x.clamped(effect->high), middle};
    if (effect->low < x.low) {
      svg.arrow(at, from, "");
    } else {
      svg.line(from, at, "ln thick");
    }
    if (effect->high > x.high) {
      svg.arrow(at, to, "");
    } else {
      svg.line(at, to, "ln thick");
    }
    svg.shape(shape_of(tint), at, 4.5, "dot");
    svg.close();
    svg.close();
  }
  return svg;
}

std::string panel_svg(const ReportData& data, Panel panel) {
  return draw_panel(data, panel, PanelWidth::page).file();
}

}  // namespace tightloop
