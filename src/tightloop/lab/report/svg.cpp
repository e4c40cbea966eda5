#include "tightloop/lab/report/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

namespace tightloop {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Bytes of the valid UTF-8 character at the front that XML allows; 0 when there is none.
size_t valid_prefix(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return first >= 0x20 || first == '\n' || first == '\t' ? 1 : 0;
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || s.size() < length) return 0;
  uint32_t code = first & (0xFFU >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3FU);
  }
  static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool forbidden = code < kLeast[length] || code > 0x10FFFF ||
                         (code >= 0xD800 && code <= 0xDFFF) || code == 0xFFFE || code == 0xFFFF ||
                         (code >= 0x7F && code <= 0x9F);
  return forbidden ? 0 : length;
}

/// A coordinate: two decimals at most, no "-0".
std::string px(double v) {
  std::string text = fmt::format("{:.2f}", v);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

bool finite(Point p) {
  return std::isfinite(p.x) && std::isfinite(p.y);
}

std::string points_text(const std::vector<Point>& points) {
  std::string text;
  for (const Point& p : points)
    text += fmt::format("{}{},{}", text.empty() ? "" : " ", px(p.x), px(p.y));
  return text;
}

/// The step of linear ticks: 1, 2 or 5 times a power of ten, at most `wanted` steps.
double round_step(double span, int wanted) {
  const double raw = span / std::max(1, wanted);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double m : {1.0, 2.0, 5.0}) {
    if (m * power >= raw * (1.0 - 1e-9)) return m * power;
  }
  return 10.0 * power;
}

std::string tick_label(double value, double step) {
  const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 8);
  if (std::fabs(value) < 0.5 * std::pow(10.0, -decimals)) value = 0.0;
  if (std::fabs(value) >= 1e6) return short_number(value);
  return fmt::format("{:.{}f}", value, decimals);
}

}  // namespace

std::string clean_text(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const size_t n = valid_prefix(text);
    clean += n == 0 ? kReplacement : text.substr(0, n);
    text.remove_prefix(std::max<size_t>(n, 1));
  }
  return clean;
}

std::string escape_text(std::string_view text) {
  std::string escaped;
  for (char c : clean_text(text)) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string short_number(double value, int digits) {
  if (!std::isfinite(value)) return "n/a";
  const double size = std::fabs(value);
  if (size == 0.0) return "0";
  if (size >= 1e7 || size < 1e-4) return fmt::format("{:.{}e}", value, digits - 1);
  const int before = static_cast<int>(std::floor(std::log10(size))) + 1;
  std::string text = fmt::format("{:.{}f}", value, std::max(0, digits - before));
  if (size < 1e4) return text;
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

namespace {

std::string with_unit(double value, double base, std::initializer_list<std::string_view> units) {
  if (!std::isfinite(value)) return "n/a";
  const auto* unit = units.begin();
  while (std::fabs(value) >= base * 0.9995 && unit + 1 != units.end()) {
    value /= base;
    ++unit;
  }
  return fmt::format("{} {}", short_number(value), *unit);
}

}  // namespace

std::string signed_number(double value, int decimals) {
  std::string text = fmt::format("{:+.{}f}", value, decimals);
  if (text.find_first_not_of("-0.") == std::string::npos) text[0] = '+';
  return text;
}

std::string human_bytes_text(double bytes) {
  return with_unit(bytes, 1024.0, {"B", "KiB", "MiB", "GiB", "TiB"});
}

std::string human_seconds(double seconds) {
  if (std::fabs(seconds) >= 1.0) return fmt::format("{} s", short_number(seconds));
  return with_unit(1e9 * seconds, 1000.0, {"ns", "µs", "ms", "s"});
}

std::string human_flops(double flops) {
  return with_unit(flops, 1000.0, {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"});
}

double Axis::at(double value) const {
  const double share = scale == Scale::log
                           ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low))
                           : (value - low) / (high - low);
  return from_px + share * (to_px - from_px);
}

double Axis::clamped(double value) const {
  return std::isnan(value) ? value : at(std::clamp(value, low, high));
}

std::vector<Tick> ticks(const Axis& axis, int wanted) {
  std::vector<Tick> result;
  if (axis.scale == Axis::Scale::linear) {
    const double step = round_step(axis.high - axis.low, wanted);
    const double slack = 1e-9 * (axis.high - axis.low);
    const double first = std::ceil((axis.low - slack) / step);
    for (int i = 0; i <= 2 * std::max(1, wanted); ++i) {
      const double value = (first + i) * step;
      if (value > axis.high + slack) break;
      result.push_back({value, tick_label(value, step)});
    }
    return result;
  }
  const int first = static_cast<int>(std::floor(std::log10(axis.low) + 1e-9));
  const int last = static_cast<int>(std::ceil(std::log10(axis.high) - 1e-9));
  const int decades = last - first;
  const int every = std::max(1, (decades + std::max(1, wanted) - 1) / std::max(1, wanted));
  const bool between = 2 * decades <= wanted;  // room for labels at 2 and 5
  for (int k = first; k <= last; ++k) {
    for (int m = 1; m <= 9; ++m) {
      const double value = m * std::pow(10.0, k);
      if (value < axis.low * (1.0 - 1e-9) || value > axis.high * (1.0 + 1e-9)) continue;
      if (decades > 6 && m > 1) break;
      const bool labelled = (m == 1 && (k - first) % every == 0) || (between && (m == 2 || m == 5));
      const bool plain = k > -5 && k < 5;
      std::string label;
      if (labelled) label = plain ? fmt::format("{:g}", value) : fmt::format("{:.0e}", value);
      result.push_back({value, std::move(label)});
    }
  }
  return result;
}

Axis nice_axis(Axis::Scale scale, double low, double high, double from_px, double to_px) {
  const bool log = scale == Axis::Scale::log;
  if (!std::isfinite(low) || !std::isfinite(high) || low > high || (log && low <= 0.0)) {
    low = log ? 1.0 : 0.0;
    high = log ? 10.0 : 1.0;
  }
  if (log) {
    low = std::max(low, 1e-30);
    high = std::min(std::max(high, low), 1e30);
    low = std::pow(10.0, std::floor(2.0 * std::log10(low) + 1e-9) / 2.0);
    high = std::pow(10.0, std::ceil(2.0 * std::log10(high) - 1e-9) / 2.0);
    if (high <= low * 1.5) high = low * 10.0;
  } else {
    const double least = std::max(1e-9 * std::max(std::fabs(low), std::fabs(high)), 1e-12);
    if (high - low < least) {
      const double middle = 0.5 * (low + high);
      const double half = std::max(0.05 * std::fabs(middle), 1e3 * least);
      low = middle - half;
      high = middle + half;
    }
    const double step = round_step(high - low, 12);
    low = std::floor(low / step + 1e-9) * step;
    high = std::ceil(high / step - 1e-9) * step;
  }
  return {scale, low, high, from_px, to_px};
}

Svg::Svg(std::string id, double width, double height, std::string title)
    : id_(std::move(id)), width_(width), height_(height), title_(std::move(title)) {}

void Svg::line(Point a, Point b, std::string_view classes) {
  if (!finite(a) || !finite(b)) return;
  body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" class=\"{}\"/>\n", px(a.x),
                       px(a.y), px(b.x), px(b.y), classes);
}

void Svg::polyline(const std::vector<Point>& points, std::string_view classes) {
  std::vector<Point> piece;
  const auto flush = [&] {
    if (piece.size() > 1)
      body_ += fmt::format("<polyline points=\"{}\" class=\"{}\"/>\n", points_text(piece), classes);
    piece.clear();
  };
  for (const Point& p : points) {
    if (finite(p)) {
      piece.push_back(p);
    } else {
      flush();
    }
  }
  flush();
}

void Svg::polygon(const std::vector<Point>& points, std::string_view classes) {
  if (points.size() < 3 || !std::all_of(points.begin(), points.end(), finite)) return;
  body_ += fmt::format("<polygon points=\"{}\" class=\"{}\"/>\n", points_text(points), classes);
}

void Svg::rect(double x, double y, double width, double height, std::string_view classes) {
  if (!finite({x, y}) || !finite({width, height}) || width < 0.0 || height < 0.0) return;
  body_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{}\"/>\n", px(x),
                       px(y), px(width), px(height), classes);
}

void Svg::shape(MarkShape shape, Point c, double r, std::string_view classes) {
  if (!finite(c) || !std::isfinite(r)) return;
  switch (shape) {
    case MarkShape::circle:
      body_ += fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\" class=\"{}\"/>\n", px(c.x),
                           px(c.y), px(r), classes);
      break;
    case MarkShape::square: {
      const double s = 0.88 * r;
      rect(c.x - s, c.y - s, 2 * s, 2 * s, classes);
      break;
    }
    case MarkShape::triangle: {
      const double s = 1.2 * r;
      polygon({{c.x, c.y - s}, {c.x + s, c.y + 0.8 * s}, {c.x - s, c.y + 0.8 * s}}, classes);
      break;
    }
    case MarkShape::diamond: {
      const double s = 1.3 * r;
      polygon({{c.x, c.y - s}, {c.x + s, c.y}, {c.x, c.y + s}, {c.x - s, c.y}}, classes);
      break;
    }
  }
}

void Svg::arrow(Point a, Point b, std::string_view classes) {
  if (!finite(a) || !finite(b)) return;
  const double dx = b.x - a.x, dy = b.y - a.y, length = std::hypot(dx, dy);
  if (length < 1.0) return;
  const double head = std::min(7.0, 0.6 * length), ux = dx / length, uy = dy / length;
  const Point base{b.x - head * ux, b.y - head * uy};
  open_group(classes);
  line(a, base, "ln");
  polygon({b,
           {base.x - 0.42 * head * uy, base.y + 0.42 * head * ux},
           {base.x + 0.42 * head * uy, base.y - 0.42 * head * ux}},
          "dot");
  close();
}

void Svg::text(
    Point at, std::string_view text, std::string_view classes, Anchor anchor, double degrees) {
  if (!finite(at)) return;
  static constexpr std::string_view kNames[] = {"start", "middle", "end"};
  const std::string turn = degrees == 0.0 ? ""
                                          : fmt::format(" transform=\"rotate({} {} {})\"",
                                                        px(degrees), px(at.x), px(at.y));
  body_ +=
      fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" class=\"{}\"{}>{}</text>\n", px(at.x),
                  px(at.y), kNames[static_cast<int>(anchor)], classes, turn, escape_text(text));
}

void Svg::open_group(std::string_view classes) {
  body_ += fmt::format("<g class=\"{}\">\n", classes);
}

void Svg::open_mark(Point at, std::string_view tip, std::string_view classes) {
  const Point p = finite(at) ? at : Point{};
  body_ += fmt::format("<g class=\"m {}\" data-x=\"{}\" data-y=\"{}\"><title>{}</title>\n", classes,
                       px(p.x), px(p.y), escape_text(tip));
}

void Svg::open_clipped(double x, double y, double width, double height) {
  const std::string id = fmt::format("{}-clip{}", id_, clips_++);
  body_ += fmt::format(
      "<clipPath id=\"{0}\"><rect x=\"{1}\" y=\"{2}\" width=\"{3}\" height=\"{4}\"/></clipPath>\n"
      "<g clip-path=\"url(#{0})\">\n",
      id, px(x), px(y), px(width), px(height));
}

std::string Svg::header(std::string_view attributes) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" {}>"
      "<title>{}</title>\n",
      px(width_), px(height_), attributes, escape_text(title_));
}

std::string Svg::file() const {
  return header(
             fmt::format("width=\"{}\" height=\"{}\" class=\"chart\"", px(width_), px(height_))) +
         "<style>" + chart_style() + "</style>\n" +
         fmt::format("<rect width=\"{}\" height=\"{}\" class=\"bg\"/>\n", px(width_), px(height_)) +
         body_ + "</svg>\n";
}

std::string Svg::inlined(std::string_view classes) const {
  return header(fmt::format("class=\"chart {}\"", classes)) + body_ + "</svg>\n";
}

std::string chart_style() {
  // Okabe and Ito's palette, which stays apart for the common kinds of colour blindness; the
  // reference is neutral. The second row is for a dark background.
  static constexpr std::string_view kLight[kChartColors] = {
      "#555b63", "#0072b2", "#c4500a", "#00795a", "#a0478a", "#8a6d00", "#2f8fc9", "#8b2f2f"};
  static constexpr std::string_view kDark[kChartColors] = {
      "#b4bac2", "#56b4e9", "#f0883e", "#2fbf95", "#d891bd", "#e0c23c", "#8ecbf0", "#e08a8a"};
  std::string style =
      ".chart{font-family:system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;"
      "font-size:12px;font-variant-numeric:tabular-nums}"
      ".chart text{fill:#24292f}.chart .soft{fill:#5a626c}.chart .tick{font-size:11px;fill:#5a626c}"
      ".chart .tint{fill:currentColor}.chart .strong{font-weight:600}"
      ".halo{paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}"
      ".bg{fill:#ffffff}"
      ".ln{fill:none;stroke:currentColor}.thin{stroke-width:1;stroke-opacity:.55}"
      ".thick{stroke-width:2.2}.dot{fill:currentColor}.ring{fill:none;stroke:currentColor}"
      ".open{fill:#ffffff;stroke:currentColor;stroke-width:1.5}"
      ".pale{opacity:.6}.area{fill:currentColor;fill-opacity:.13;stroke:none}"
      ".fade{fill-opacity:.45;stroke:currentColor;stroke-width:1}.spot{fill:currentColor;fill-"
      "opacity:0}.hit{fill:transparent;stroke:none}"
      ".grid{stroke:#e4e7eb;stroke-width:1}.minor{stroke:#f1f3f5;stroke-width:1}"
      ".axis{stroke:#8a929b;stroke-width:1}.roof{fill:none;stroke:#24292f;stroke-width:1.8}"
      ".target{stroke:#24292f;stroke-width:1.2;stroke-dasharray:6 4}"
      ".floor{stroke:#8a929b;stroke-width:1.2;stroke-dasharray:1.5 3}";
  for (int i = 0; i < kChartColors; ++i) style += fmt::format(".c{}{{color:{}}}", i, kLight[i]);
  style +=
      "@media screen and (prefers-color-scheme:dark){"
      ".chart text{fill:#e3e7eb}.chart .soft,.chart .tick{fill:#a3abb5}"
      ".chart .tint{fill:currentColor}.halo{stroke:#15181c}.bg{fill:#15181c}.open{fill:#15181c}"
      ".grid{stroke:#2b3037}.minor{stroke:#20242a}.axis{stroke:#6b747e}.roof{stroke:#e3e7eb}"
      ".target{stroke:#e3e7eb}.floor{stroke:#a3abb5}";
  for (int i = 0; i < kChartColors; ++i) style += fmt::format(".c{}{{color:{}}}", i, kDark[i]);
  return style + "}";
}

double text_width(std::string_view text, double font_px) {
  double units = 0.0;
  for (char c : text) {
    if ((static_cast<uint8_t>(c) & 0xC0) == 0x80) continue;  // inside a character
    units += std::string_view("ilj.,:;|!'()[] ft").find(c) != std::string_view::npos ? 0.34
             : std::string_view("mwMW%@").find(c) != std::string_view::npos          ? 0.88
             : c >= 'A' && c <= 'Z'                                                  ? 0.68
                                                                                     : 0.58;
  }
  return units * font_px;
}

}  // namespace tightloop
