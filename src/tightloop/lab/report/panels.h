#pragma once

#include "tightloop/lab/report/report.h"
#include "tightloop/lab/report/svg.h"

namespace tightloop {

/// Every picture is drawn twice: for a page and for a phone.
enum class PanelWidth { page, phone };

Svg draw_roofline(const ReportData& data, PanelWidth width);  // Panel A
Svg draw_quality(const ReportData& data, PanelWidth width);   // Panel B
Svg draw_panel(const ReportData& data, Panel panel, PanelWidth width);
/// Differences to the reference arm with their intervals, one row per effect.
Svg draw_effects(const ReportData& data, PanelWidth width);

/// The arms whose points Panel A compares; either may be empty when no point has it.
std::string roofline_reference(const ReportData& data);
std::string roofline_candidate(const ReportData& data);
/// Place in `arms` (0 when the name is not there): the colour of an arm.
size_t arm_index(const ReportData& data, const std::string& arm);
/// Whether a point can be drawn and listed: positive time, finite work, some work.
bool is_drawable(const RooflinePoint& point);
/// "compute" or "memory": the ceiling that bounds the point.
std::string_view bound_of(const RooflinePoint& point, const RooflineCeilings& ceilings);

/// "-3.4 % [-8.0, +1.2]".
std::string effect_text(const ReportEffect& effect);
/// Whether most cells of a column start with a number; the first column never does.
bool holds_numbers(const ReportTable& table, size_t column);

/// Mean of the runs of one arm at the steps that all of them evaluated; empty below two runs.
struct MeanCurve {
  std::vector<CurvePoint> points;
  int runs = 0;
};
MeanCurve mean_curve(const ReportData& data, const std::string& arm);

// What the panels share.
inline constexpr double kChartFont = 12.0;  // pixels
/// Class of the i-th colour, shape of the i-th arm.
std::string color(size_t index);
MarkShape shape_of(size_t index);
/// The text in one line of at most `width` pixels, with an ellipsis when it was cut.
std::string cut(std::string_view text, double width);
/// Grid lines and labels of both axes around a plot area.
void draw_axes(Svg& svg, const Axis& x, const Axis& y, int x_labels, int y_labels);
void draw_empty(Svg& svg, std::string_view sentence);

}  // namespace tightloop
