#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tightloop {

/// Valid UTF-8 without the characters XML forbids: each bad byte or character becomes U+FFFD.
std::string clean_text(std::string_view text);
/// clean_text with & < > " ' escaped: safe as content and as attribute value of XML and HTML.
std::string escape_text(std::string_view text);

/// "0.031", "1.24", "14.2", "1,234", "1.3e+09": about `digits` significant digits, no exponent for
/// everyday numbers; "n/a" when not finite.
std::string short_number(double value, int digits = 3);
/// "+1.25", "-0.30", "+0.00": with so many decimals, and no zero is negative.
std::string signed_number(double value, int decimals);
/// "1.5 MiB", "12.3 us", "2.1 GFLOP": a number with the unit that fits.
std::string human_bytes_text(double bytes);
std::string human_seconds(double seconds);
std::string human_flops(double flops);

struct Point {
  double x = 0.0;
  double y = 0.0;
};

/// Maps values to pixels, linearly or by logarithm.
struct Axis {
  enum class Scale { linear, log };
  Scale scale = Scale::linear;
  double low = 0.0, high = 1.0;  // low < high; both above 0 on a log scale
  double from_px = 0.0, to_px = 100.0;

  /// Pixel of a value; not finite for a value that the scale cannot show.
  double at(double value) const;
  /// As at(), but values beyond an end are put on that end.
  double clamped(double value) const;
};

struct Tick {
  double value = 0.0;
  std::string label;  // empty: a minor tick
};

/// Round values inside the axis, at most about `wanted` with a label: 1, 2, 5 x 10^k on a linear
/// scale; decades (and 2, 5 when there are few) on a log scale.
std::vector<Tick> ticks(const Axis& axis, int wanted);

/// An axis over [low, high], widened to round ends and never empty; for a log scale both must be
/// above 0. Ends that are not finite give [0, 1] or [1, 10].
Axis nice_axis(Axis::Scale scale, double low, double high, double from_px, double to_px);

enum class Anchor { start, middle, end };
enum class MarkShape { circle, square, triangle, diamond };

/// Writes one picture. Colours come from classes (chart_style()); an element with a coordinate
/// that is not finite is left out. Text is escaped here.
class Svg {
 public:
  /// `id` prefixes the ids inside, so that several pictures can live in one HTML file.
  Svg(std::string id, double width, double height, std::string title);

  double width() const { return width_; }
  double height() const { return height_; }

  void line(Point a, Point b, std::string_view classes);
  /// A polyline; points that are not finite break it.
  void polyline(const std::vector<Point>& points, std::string_view classes);
  void polygon(const std::vector<Point>& points, std::string_view classes);
  void rect(double x, double y, double width, double height, std::string_view classes);
  void shape(MarkShape shape, Point center, double radius, std::string_view classes);
  /// A line with a head at b.
  void arrow(Point a, Point b, std::string_view classes);
  void text(Point at,
            std::string_view text,
            std::string_view classes,
            Anchor anchor = Anchor::start,
            double degrees = 0.0);

  /// Elements until the next close() belong together. A mark has a tooltip and a place that the
  /// hover script looks for.
  void open_group(std::string_view classes);
  void open_mark(Point at, std::string_view tip, std::string_view classes);
  /// A group whose content is cut off outside the rectangle.
  void open_clipped(double x, double y, double width, double height);
  void close() { body_ += "</g>\n"; }

  /// For a file of its own: with style and background.
  std::string file() const;
  /// For an HTML page that holds chart_style().
  std::string inlined(std::string_view classes) const;

 private:
  std::string header(std::string_view attributes) const;

  std::string id_;
  double width_;
  double height_;
  std::string title_;
  std::string body_;
  int clips_ = 0;
};

/// The style sheet of all pictures: light, and dark where the reader prefers it (not in print).
/// Classes: c0..c7 set a colour; ln (line), dot (filled), ring (hollow), area, grid, axis, ...
std::string chart_style();
inline constexpr int kChartColors = 8;

/// Width of a text in pixels at a font size, estimated for a common sans-serif font.
double text_width(std::string_view text, double font_px);

}  // namespace tightloop
