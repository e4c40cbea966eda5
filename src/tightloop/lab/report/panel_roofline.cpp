#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "tightloop/lab/report/panels.h"

namespace tightloop {
namespace {

constexpr double kBold = 1.12;     // width of strong text against the same in regular
constexpr double kLabelGap = 3.0;  // pixels between labels
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
  for (const std::string& name : p.replaces)
    tip += (&name == p.replaces.data() ? "\nreplaces " : ", ") + name;
  return tip;
}

}  // namespace

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
    // Ops of no weight stand on the edge rather than stretch the axis.
    if (p.point->share_of_step > 5e-4 && p.gflops > 0.0)
      y_low = std::min(y_low, std::max(p.gflops, peak * 1e-4));
    y_high = std::max(y_high, std::min(p.gflops, peak * 1e2));
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
    const double half = 0.5 * kBold * text_width(text, kChartFont);
    for (double d = -half; d <= half; d += 6.0) {
      const Point q{at.x + d * std::cos(turn) + 11 * std::sin(turn),
                    at.y + d * std::sin(turn) - 11 * std::cos(turn)};
      reserve({q.x - 7, q.y - 7, q.x + 7, q.y + 7});
    }
    const std::string peak_text =
        phone ? fmt::format("{} GFLOP/s", short_number(peak))
              : fmt::format("multiply-add peak, measured: {} GFLOP/s", short_number(peak));
    svg.text({right - 4, y.at(peak) - 7}, peak_text, "strong", Anchor::end);
    reserve({right - 4 - kBold * text_width(peak_text, kChartFont), y.at(peak) - 20, right,
             y.at(peak) - 2});
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

  // Arrows where the work changed: from ops that lost at least half of their calls to the op in
  // their place, and between the two states of one op or aggregate.
  std::map<std::pair<std::string, std::string>, const Placed*> before, after;  // (phase, name)
  for (const Placed& p : placed)
    (p.candidate ? after : before)[{p.point->phase, p.point->name}] = &p;
  struct Arrow {
    const Placed* from;
    const Placed* to;
  };
  std::vector<Arrow> arrows;
  for (const Placed& p : placed) {
    if (p.candidate) continue;
    const RooflinePoint& then = *p.point;
    const auto it = after.find({then.phase, then.name});
    const RooflinePoint* now = it == after.end() ? nullptr : it->second->point;
    if (now && (std::fabs(now->bytes - then.bytes) > 0.01 * then.bytes ||
                std::fabs(now->flops - then.flops) > 0.01 * then.flops))
      arrows.push_back({&p, it->second});
    if ((now && now->calls > 0.5 * then.calls) || then.share_of_step < 2e-3) continue;
    for (const Placed& q : placed) {
      const auto& names = q.point->replaces;
      if (!q.candidate || std::find(names.begin(), names.end(), then.name) == names.end()) continue;
      // A rewrite names ops without their phase: another phase only when its own has none.
      const bool own = q.point->phase == then.phase;
      if (own || !before.contains({q.point->phase, then.name})) arrows.push_back({&p, &q});
    }
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
              "pale " + color(phase_color(a.to->point->phase)));
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
    const std::string name = cut(p->point->name, 200);
    const bool strong = p->point->kind == RooflinePoint::Kind::aggregate;
    const double w = (strong ? kBold : 1.0) * text_width(name, kChartFont);
    const double r = p->radius + 3.0, h = kChartFont;
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
                           strong ? " strong" : ""),
               t.anchor);
      reserve({t.box.left - kLabelGap, t.box.top, t.box.right + kLabelGap, t.box.bottom});
      break;
    }
  }

  // Legend.
  double at = phone ? 8 : left, row = 16;
  const auto entry = [&](std::string_view text, auto&& draw) {
    const double needed = 18 + text_width(text, kChartFont) + 14;
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

bool is_drawable(const RooflinePoint& p) {
  return std::isfinite(p.seconds) && p.seconds > 0.0 && std::isfinite(p.flops) &&
         std::isfinite(p.bytes) && p.flops >= 0.0 && p.bytes >= 0.0 && p.flops + p.bytes > 0.0;
}

std::string_view bound_of(const RooflinePoint& p, const RooflineCeilings& c) {
  return p.flops * c.memory_gbs > p.bytes * c.peak_gflops ? "compute" : "memory";
}

}  // namespace tightloop
