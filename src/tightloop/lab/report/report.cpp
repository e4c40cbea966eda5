#include "tightloop/lab/report/report.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tightloop/lab/report/page.h"
#include "tightloop/lab/report/panels.h"
#include "tightloop/lab/report/svg.h"

namespace tightloop {
namespace {

std::string section(std::string_view heading, std::string_view content) {
  return fmt::format("<section>\n<h2>{}</h2>\n{}</section>\n", escape_text(heading), content);
}

/// Both versions of a picture; the style sheet shows one of them.
std::string figure(std::string_view id, const Svg& page, const Svg& phone, std::string_view text) {
  return fmt::format("<figure id=\"{}\">\n{}{}{}</figure>\n", id, page.inlined("page"),
                     phone.inlined("phone"),
                     text.empty() ? "" : "<figcaption>" + escape_text(text) + "</figcaption>\n");
}

/// HTML of a sentence: no line break between a number and its per cent sign, nor in a name such as
/// "fused-rmsnorm".
std::string sentence(std::string_view text) {
  std::string html;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = escape_text(text.substr(at, end - at));
    const bool name = word.find('-', 1) != std::string::npos && word.size() < 30;
    html += name ? "<span class=\"name\">" + word + "</span>" : word;
    if (end < text.size()) html += text.substr(end, 2) == " %" ? "&nbsp;" : " ";
    at = end + 1;
  }
  return html;
}

std::string table_html(const ReportTable& table) {
  std::string html = "<div class=\"wide\"><table>\n<thead><tr>";
  std::vector<std::string_view> align;
  for (size_t i = 0; i < table.columns.size(); ++i) {
    align.push_back(holds_numbers(table, i) ? "" : " class=\"left\"");
    html += fmt::format("<th scope=\"col\"{}>{}</th>", align[i], escape_text(table.columns[i]));
  }
  html += "</tr></thead>\n<tbody>\n";
  for (const std::vector<std::string>& row : table.rows) {
    html += "<tr>";
    for (size_t i = 0; i < row.size(); ++i)
      html += fmt::format("<td{}>{}</td>", i < align.size() ? align[i] : "", escape_text(row[i]));
    html += "</tr>\n";
  }
  html += "</tbody></table></div>\n";
  if (!table.note.empty()) html += "<p class=\"note\">" + escape_text(table.note) + "</p>\n";
  return html;
}

/// The numbers behind Panel A, aggregates first, then ops by time.
ReportTable roofline_table(const ReportData& data) {
  ReportTable table;
  table.columns = {"op",    "part",     "arm",  "calls",   "time",        "% of step",
                   "moved", "computed", "GB/s", "GFLOP/s", "% of ceiling"};
  std::vector<const RooflinePoint*> points;
  for (const RooflinePoint& p : data.points) points.push_back(&p);
  std::stable_sort(points.begin(), points.end(), [](const auto* a, const auto* b) {
    if (a->kind != b->kind) return a->kind == RooflinePoint::Kind::aggregate;
    return a->seconds > b->seconds;
  });
  for (const RooflinePoint* p : points)
    table.rows.push_back({p->name, p->phase, p->arm, short_number(p->calls),
                          human_seconds(p->seconds), fmt::format("{:.2f}", 100 * p->share_of_step),
                          human_bytes_text(p->bytes), human_flops(p->flops),
                          short_number(1e-9 * p->bytes / p->seconds),
                          short_number(1e-9 * p->flops / p->seconds),
                          fmt::format("{:.0f}", 100.0 * p->share_of_ceiling)});
  table.note =
      "Moved and computed are what the operation must move and compute at least, not what a "
      "counter saw. If an op were free, the step would be shorter by its share.";
  return table;
}

std::string roofline_html(const ReportData& data) {
  std::string caption =
      "Every operation of one training step against the ceilings measured on this device, on "
      "random "
      "data. Hollow: " +
      roofline_reference(data);
  if (roofline_candidate(data) != roofline_reference(data))
    caption += "; filled: " + roofline_candidate(data) +
               "; an arrow leads from replaced work to what replaced it";
  caption +=
      ". Above the roof: operands were still in a cache. At the left edge: ops without FLOPs.";
  return figure("panel-roofline", draw_panel(data, Panel::roofline, PanelWidth::page),
                draw_panel(data, Panel::roofline, PanelWidth::phone), caption) +
         "<details class=\"quiet\"><summary>The numbers</summary>\n" +
         table_html(roofline_table(data)) + "</details>\n";
}

std::string quality_html(const ReportData& data) {
  std::string caption =
      "Validation on the same tokens for every run. Thin: one seed; thick: the mean of the seeds. "
      "Marks on the target line: where a run first stays below it, with its 90 % interval. A run "
      "without a mark did not reach the target and counts as censored at its last evaluation; "
      "means "
      "below are of the runs that reached it.";
  if (data.metric_sd)
    caption +=
        " Band: two standard errors from the spread of repeats (" + data.metric_sd_source + ").";
  return figure("panel-quality", draw_panel(data, Panel::quality, PanelWidth::page),
                draw_panel(data, Panel::quality, PanelWidth::phone), caption);
}

std::string verdicts_html(const ReportData& data) {
  std::string html;
  bool effects = false;
  for (const ReportVerdict& v : data.verdicts) {
    html += fmt::format(
        "<div class=\"verdict c{}\"><p><strong>{}</strong>: <span class=\"word\">{}</span>. "
        "{}</p></div>\n",
        arm_index(data, v.arm) % kChartColors, escape_text(v.arm), escape_text(v.word),
        sentence(v.text));
    effects = effects || !v.effects.empty();
  }
  if (effects)
    html += figure("effects", draw_effects(data, PanelWidth::page),
                   draw_effects(data, PanelWidth::phone), "");
  return html;
}

std::string memory_html(const ReportData& data) {
  std::vector<std::string> purposes;
  double most = 0.0;
  const auto usable = [](double bytes) { return std::isfinite(bytes) && bytes > 0.0; };
  const auto total_of = [&](const ReportMemory& m) {
    double total = 0.0;
    for (const auto& [purpose, bytes] : m.bytes) total += usable(bytes) ? bytes : 0.0;
    return total;
  };
  for (const ReportMemory& m : data.memory) {
    most = std::max(most, total_of(m));
    for (const auto& [purpose, bytes] : m.bytes) {
      if (std::find(purposes.begin(), purposes.end(), purpose) == purposes.end())
        purposes.push_back(purpose);
    }
  }
  // Purposes that no bar would show are one piece.
  std::vector<std::string> pieces;
  for (const std::string& purpose : purposes) {
    double largest = 0.0;
    for (const ReportMemory& m : data.memory) {
      for (const auto& [name, bytes] : m.bytes) {
        if (name == purpose && usable(bytes)) largest = std::max(largest, bytes);
      }
    }
    if (largest >= 0.01 * most) pieces.push_back(purpose);
  }
  const auto is_piece = [&](const std::string& purpose) {
    return std::find(pieces.begin(), pieces.end(), purpose) != pieces.end();
  };
  const auto color_of = [&](const std::string& purpose) {
    const auto at = std::find(pieces.begin(), pieces.end(), purpose);
    return at == pieces.end() ? size_t{0}
                              : static_cast<size_t>(at - pieces.begin()) % (kChartColors - 1) + 1;
  };
  std::string html = "<div class=\"keys\">";
  for (const std::string& purpose : pieces)
    html += fmt::format("<span><i class=\"c{}\"></i>{}</span>", color_of(purpose),
                        escape_text(purpose));
  if (pieces.size() < purposes.size()) html += "<span><i class=\"c0\"></i>other</span>";
  html += "</div>\n<div class=\"bars\">\n";
  for (const ReportMemory& m : data.memory) {
    html += fmt::format(
        "<div class=\"name\">{}</div>\n<div class=\"total\">{}</div>\n<div class=\"bar\">",
        escape_text(m.arm), human_bytes_text(total_of(m)));
    double other = 0.0;
    const auto add = [&](const std::string& purpose, double bytes) {
      html += fmt::format("<i class=\"c{}\" style=\"width:{:.3f}%\" title=\"{}: {}\"></i>",
                          color_of(purpose), 100.0 * bytes / most, escape_text(purpose),
                          human_bytes_text(bytes));
    };
    for (const auto& [purpose, bytes] : m.bytes) {
      if (!usable(bytes)) continue;
      if (is_piece(purpose))
        add(purpose, bytes);
      else
        other += bytes;
    }
    if (other > 0.0) add("other", other);
    html += "</div>\n";
  }
  html += "</div>\n";
  ReportTable table;
  table.columns = {"arm"};
  table.columns.insert(table.columns.end(), purposes.begin(), purposes.end());
  for (const ReportMemory& m : data.memory) {
    std::vector<std::string> row{m.arm};
    for (const std::string& purpose : purposes) {
      const auto it = std::find_if(m.bytes.begin(), m.bytes.end(),
                                   [&](const auto& entry) { return entry.first == purpose; });
      row.push_back(it == m.bytes.end() ? "" : human_bytes_text(it->second));
    }
    table.rows.push_back(std::move(row));
  }
  return html + "<details><summary>The numbers</summary>\n" + table_html(table) + "</details>\n";
}

std::string saved(double before, double after) {
  if (!(before > 0.0)) return "";
  return fmt::format(" ({} %)", signed_number(100.0 * (after - before) / before, 1));
}

std::string rewrites_html(const ReportData& data) {
  std::string html;
  for (const ReportRewrite& r : data.rewrites) {
    html += fmt::format("<h3>--{}</h3>\n", escape_text(r.name));
    html += fmt::format(
        "<p>{} place{} in a micro-step. The operations it replaced must move {}, those in their "
        "place {}{}; they compute {} and {}{}.</p>\n<ul>\n",
        r.places, r.places == 1 ? "" : "s", human_bytes_text(r.bytes_before),
        human_bytes_text(r.bytes_after), saved(r.bytes_before, r.bytes_after),
        human_flops(r.flops_before), human_flops(r.flops_after),
        saved(r.flops_before, r.flops_after));
    for (const std::string& line : r.lines) html += "<li>" + escape_text(line) + "</li>\n";
    html += "</ul>\n";
  }
  return html;
}

std::string reproduce_html(const ReportData& data) {
  std::string html;
  if (!data.commands.empty()) {
    html += "<pre>";
    for (const std::string& command : data.commands) html += escape_text(command) + "\n";
    html += "</pre>\n";
  }
  if (!data.machine.empty()) {
    html += "<dl>\n";
    for (const auto& [key, value] : data.machine)
      html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape_text(key), escape_text(value));
    html += "</dl>\n";
  }
  if (data.arms.size() > 1) {
    ReportTable table{"", "", {"arm", "flags"}, {}};
    for (const ReportArm& arm : data.arms) table.rows.push_back({arm.name, arm.flags});
    html += table_html(table);
  }
  return html;
}

/// JSON that can stand inside a script element whatever the strings hold.
std::string script_json(const OrderedJson& json) {
  std::string safe;
  for (char c : json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string goal_text(const ReportData& data) {
  return data.metric.empty() ? "" : fmt::format("{} ≤ {:.6g}", data.metric, data.threshold);
}

std::string render_html(const ReportData& data) {
  const std::string goal = goal_text(data);
  std::string body = "<header>\n<h1>";
  if (!goal.empty()) body += "<span class=\"goal\">" + escape_text(goal) + "</span>: ";
  body += sentence(data.answer.empty() ? data.title : data.answer) + "</h1>\n";
  if (!data.answer.empty()) body += "<p class=\"sub\">" + escape_text(data.title) + "</p>\n";
  body += "</header>\n";
  if (!data.tables.empty()) body += table_html(data.tables.front());
  if (!data.verdicts.empty()) body += section("Verdict", verdicts_html(data));
  if (!data.runs.empty()) body += section("Quality against time", quality_html(data));
  if (!data.points.empty() || data.ceilings)
    body += section("Roofline of the step", roofline_html(data));
  if (!data.memory.empty()) body += section("Memory by purpose", memory_html(data));
  if (!data.rewrites.empty()) body += section("What each rewrite did", rewrites_html(data));
  for (size_t i = 1; i < data.tables.size(); ++i)
    body += section(data.tables[i].title, table_html(data.tables[i]));
  if (!data.commands.empty() || !data.machine.empty())
    body += section("How to reproduce", reproduce_html(data));
  if (!data.notes.empty()) {
    std::string notes = "<ul>\n";
    for (const std::string& note : data.notes) notes += "<li>" + escape_text(note) + "</li>\n";
    body += section("Notes", notes + "</ul>\n");
  }
  body += "<script type=\"application/json\" id=\"report-data\">" + script_json(report_json(data)) +
          "</script>\n";
  return html_page(goal.empty() ? data.title : fmt::format("{}: {}", goal, data.title), body);
}

OrderedJson report_json(const ReportData& data) {
  OrderedJson json;
  json["v"] = 1;
  json["title"] = data.title;
  json["metric"] = data.metric;
  json["threshold"] = data.threshold;
  json["answer"] = data.answer;
  json["floor"] = data.floor ? OrderedJson(*data.floor) : OrderedJson();
  json["metric_sd"] = data.metric_sd ? OrderedJson(*data.metric_sd) : OrderedJson();
  json["arms"] = OrderedJson::array();
  for (const ReportArm& arm : data.arms)
    json["arms"].push_back({{"name", arm.name}, {"flags", arm.flags}});
  json["runs"] = OrderedJson::array();
  for (const ReportRun& run : data.runs) {
    OrderedJson entry;
    entry["arm"] = run.arm;
    entry["seed"] = run.seed;
    entry["status"] = run.status;
    for (const char* key : {"step", "clock_s", "metric"}) entry[key] = OrderedJson::array();
    for (const CurvePoint& p : run.curve) {
      entry["step"].push_back(p.step);
      entry["clock_s"].push_back(p.clock_s);
      entry["metric"].push_back(p.metric);
    }
    entry["crossing"] = OrderedJson();
    if (run.crossing)
      entry["crossing"] = {{"clock_s", run.crossing->clock_s},
                           {"low_s", run.crossing->low_s},
                           {"high_s", run.crossing->high_s},
                           {"step", run.crossing->step}};
    json["runs"].push_back(std::move(entry));
  }
  json["verdicts"] = OrderedJson::array();
  for (const ReportVerdict& v : data.verdicts) {
    OrderedJson effects = OrderedJson::array();
    for (const ReportEffect& e : v.effects)
      effects.push_back(
          {{"what", e.what}, {"percent", e.percent}, {"low", e.low}, {"high", e.high}});
    json["verdicts"].push_back(
        {{"arm", v.arm}, {"word", v.word}, {"text", v.text}, {"effects", effects}});
  }
  json["ceilings"] = OrderedJson();
  if (data.ceilings)
    json["ceilings"] = {{"peak_gflops", data.ceilings->peak_gflops},
                        {"memory_gbs", data.ceilings->memory_gbs},
                        {"threads", data.ceilings->threads},
                        {"how", data.ceilings->how}};
  json["roofline"] = OrderedJson::array();
  for (const RooflinePoint& p : data.points)
    json["roofline"].push_back({{"arm", p.arm},
                                {"op", p.name},
                                {"part", p.phase},
                                {"kind", p.kind == RooflinePoint::Kind::op ? "op" : "aggregate"},
                                {"calls", p.calls},
                                {"seconds", p.seconds},
                                {"flops", p.flops},
                                {"bytes", p.bytes},
                                {"share_of_step", p.share_of_step},
                                {"share_of_ceiling", p.share_of_ceiling},
                                {"replaces", p.replaces}});
  json["memory"] = OrderedJson::array();
  for (const ReportMemory& m : data.memory) {
    OrderedJson bytes = OrderedJson::object();
    for (const auto& [purpose, value] : m.bytes) bytes[purpose] = value;
    json["memory"].push_back({{"arm", m.arm}, {"bytes", bytes}});
  }
  return json;
}

}  // namespace tightloop
