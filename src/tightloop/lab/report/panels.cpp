#include "tightloop/lab/report/panels.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace tightloop {

std::string color(size_t index) {
  return fmt::format("c{}", index % kChartColors);
}

MarkShape shape_of(size_t index) {
  return static_cast<MarkShape>(index % 4);
}

std::string cut(std::string_view text, double width) {
  std::string result = clean_text(text);
  std::replace(result.begin(), result.end(), '\n', ' ');
  if (text_width(result, kChartFont) <= width) return result;
  while (!result.empty() && text_width(result, kChartFont) > width - 8.0) {
    while (!result.empty() && (static_cast<uint8_t>(result.back()) & 0xC0) == 0x80)
      result.pop_back();
    if (!result.empty()) result.pop_back();
  }
  return result + "…";
}

void draw_axes(Svg& svg, const Axis& x, const Axis& y, int x_labels, int y_labels) {
  const double left = x.from_px, right = x.to_px, bottom = y.from_px, top = y.to_px;
  for (const Tick& t : ticks(x, x_labels)) {
    const double at = x.at(t.value);
    svg.line({at, top}, {at, bottom}, t.label.empty() ? "minor" : "grid");
    if (!t.label.empty()) svg.text({at, bottom + 15}, t.label, "tick", Anchor::middle);
  }
  for (const Tick& t : ticks(y, y_labels)) {
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

size_t arm_index(const ReportData& data, const std::string& arm) {
  const auto it = std::find_if(data.arms.begin(), data.arms.end(),
                               [&](const ReportArm& a) { return a.name == arm; });
  return it == data.arms.end() ? 0 : static_cast<size_t>(it - data.arms.begin());
}

bool holds_numbers(const ReportTable& table, size_t column) {
  if (column == 0) return false;
  int64_t numbers = 0, words = 0;
  for (const std::vector<std::string>& row : table.rows) {
    if (column >= row.size() || row[column].empty()) continue;
    const std::string& cell = row[column];
    const size_t first = cell.find_first_not_of("+-<>~ ");
    const bool number = first < 3 && cell[first] >= '0' && cell[first] <= '9';
    ++(number || cell == "n/a" || cell == "-" ? numbers : words);
  }
  return numbers >= words;
}

std::string effect_text(const ReportEffect& effect) {
  return fmt::format("{} % [{}, {}]", signed_number(effect.percent, 1),
                     signed_number(effect.low, 1), signed_number(effect.high, 1));
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
          "Differences to the reference in percent, with 90 % intervals");
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
    const std::string value = effect_text(*effect);
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
