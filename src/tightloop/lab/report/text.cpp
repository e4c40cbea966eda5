#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tightloop/lab/report/panels.h"
#include "tightloop/lab/report/report.h"
#include "tightloop/lab/report/svg.h"

namespace tightloop {
namespace {

constexpr size_t kColumns = 80;

/// Characters, each taken as one column wide.
size_t columns_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

/// At most `most` columns of the text, cut at the end.
std::string cut(std::string_view text, size_t most) {
  if (columns_of(text) <= most) return std::string(text);
  std::string result;
  size_t columns = 0;
  for (char c : text) {
    const bool starts = (static_cast<uint8_t>(c) & 0xC0) != 0x80;
    if (starts && ++columns + 2 > most) break;
    result += c;
  }
  return result + "..";
}

/// One line of clean text.
std::string flat(std::string_view text) {
  std::string result = clean_text(text);
  for (char& c : result) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return result;
}

/// The text in lines of at most 80 columns; later lines are indented by `indent`.
std::string wrapped(std::string_view text, size_t indent) {
  std::string result, line;
  const auto flush = [&] {
    if (line.find_first_not_of(' ') != std::string::npos) result += line + "\n";
    line.assign(indent, ' ');
  };
  std::string rest = flat(text);
  size_t at = std::min(rest.find_first_not_of(' '), rest.size());
  line = rest.substr(0, at);
  bool fresh = true;  // nothing but indentation in the line
  while (at < rest.size()) {
    const size_t end = std::min(rest.find(' ', at), rest.size());
    std::string word = rest.substr(at, end - at);
    if (!fresh && columns_of(line) + 1 + columns_of(word) > kColumns) {
      flush();
      fresh = true;
    }
    while (fresh && columns_of(line) + columns_of(word) > kColumns) {  // longer than a line
      size_t bytes = 0;
      for (size_t room = kColumns - columns_of(line); bytes < word.size(); ++bytes) {
        const bool starts = (static_cast<uint8_t>(word[bytes]) & 0xC0) != 0x80;
        if (starts && room-- == 0) break;
      }
      line += word.substr(0, bytes);
      word.erase(0, bytes);
      flush();
    }
    line += (fresh ? "" : " ") + word;
    fresh = false;
    at = std::min(rest.find_first_not_of(' ', end), rest.size());
  }
  flush();
  return result;
}

std::string padded(std::string_view text, size_t width, bool right) {
  const size_t columns = columns_of(text);
  const std::string blanks(width > columns ? width - columns : 0, ' ');
  return right ? blanks + std::string(text) : std::string(text) + blanks;
}

/// Columns that do not fit beside the first one follow in further blocks.
std::string table_text(const ReportTable& table) {
  const size_t n = table.columns.size();
  if (n == 0) return "";
  std::vector<size_t> width(n, 0);
  const auto cell = [&](const std::vector<std::string>& row, size_t i) {
    return i < row.size() ? cut(flat(row[i]), i == 0 ? 28 : 46) : std::string();
  };
  for (size_t i = 0; i < n; ++i) {
    width[i] = columns_of(cell(table.columns, i));
    for (const auto& row : table.rows) width[i] = std::max(width[i], columns_of(cell(row, i)));
  }
  std::string text;
  for (size_t first = 1; first < n || first == 1;) {
    size_t last = first, used = width[0];
    while (last < n && (last == first || used + 2 + width[last] <= kColumns))
      used += 2 + width[last++];
    const auto line = [&](const std::vector<std::string>& row) {
      std::string result = padded(cell(row, 0), width[0], false);
      for (size_t i = first; i < last; ++i)
        result += "  " + padded(cell(row, i), width[i], holds_numbers(table, i));
      while (!result.empty() && result.back() == ' ') result.pop_back();
      text += result + "\n";
    };
    if (first > 1) text += "\n";
    line(table.columns);
    for (const auto& row : table.rows) line(row);
    first = std::max(last, first + 1);
  }
  if (!table.note.empty()) text += wrapped(table.note, 0);
  return text;
}

std::string heading(std::string_view text) {
  return fmt::format("\n{}\n", cut(flat(text), kColumns));
}

ReportTable crossings(const ReportData& data) {
  ReportTable table;
  table.columns = {"run", "seed", "status", "last", "target at", "90 % interval", "step"};
  for (const ReportRun& run : data.runs) {
    const double end = run.curve.empty() ? std::nan("") : run.curve.back().clock_s;
    std::vector<std::string> row{run.arm, std::to_string(run.seed), run.status, human_seconds(end)};
    if (run.crossing) {
      const ReportCrossing& c = *run.crossing;
      row.push_back(fmt::format("{} s", short_number(c.clock_s, 4)));
      row.push_back(fmt::format("{} to {}", short_number(c.low_s, 4), short_number(c.high_s, 4)));
      row.push_back(short_number(c.step, 4));
    } else {
      row.push_back("not reached");
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

ReportTable roofline(const ReportData& data) {
  ReportTable table;
  table.columns = {"op", "arm", "time", "% step", "GB/s", "GFLOP/s", "% ceiling"};
  std::vector<const RooflinePoint*> points;
  for (const RooflinePoint& p : data.points) {
    if (is_drawable(p) && (p.kind == RooflinePoint::Kind::aggregate || p.share_of_step >= 0.02 ||
                           !p.replaces.empty()))
      points.push_back(&p);
  }
  std::stable_sort(points.begin(), points.end(), [](const auto* a, const auto* b) {
    if (a->kind != b->kind) return a->kind == RooflinePoint::Kind::aggregate;
    return a->seconds > b->seconds;
  });
  for (const RooflinePoint* p : points)
    table.rows.push_back({p->name, cut(flat(p->arm), 16), human_seconds(p->seconds),
                          fmt::format("{:.1f}", 100.0 * p->share_of_step),
                          short_number(1e-9 * p->bytes / p->seconds),
                          short_number(1e-9 * p->flops / p->seconds),
                          fmt::format("{:.0f}", 100.0 * p->share_of_ceiling)});
  return table;
}

}  // namespace

std::string render_text(const ReportData& data) {
  const std::string goal = goal_text(data);
  std::string text = wrapped(
      (goal.empty() ? "" : goal + ": ") + (data.answer.empty() ? data.title : data.answer), 0);
  if (!data.answer.empty()) text += wrapped(data.title, 0);
  if (!data.tables.empty()) text += "\n" + table_text(data.tables.front());
  if (!data.verdicts.empty()) {
    text += heading("verdict");
    for (const ReportVerdict& v : data.verdicts) {
      text += wrapped(fmt::format("  {}: {}. {}", v.arm, v.word, v.text), 4);
      for (const ReportEffect& e : v.effects)
        text += wrapped(fmt::format("    {}: {}", e.what, effect_text(e)), 6);
    }
  }
  if (!data.runs.empty()) text += heading("runs") + table_text(crossings(data));
  if (data.ceilings)
    text += heading(fmt::format("roofline of the step; ceilings {} GFLOP/s, {} GB/s",
                                short_number(data.ceilings->peak_gflops),
                                short_number(data.ceilings->memory_gbs)));
  if (!data.points.empty()) text += table_text(roofline(data));
  if (!data.memory.empty()) {
    text += heading("memory by purpose");
    for (const ReportMemory& m : data.memory) {
      std::string line = "  " + m.arm + ":";
      for (const auto& [purpose, bytes] : m.bytes)
        line += fmt::format(" {} {},", purpose, human_bytes_text(bytes));
      if (line.back() == ',') line.pop_back();
      text += wrapped(line, 4);
    }
  }
  if (!data.rewrites.empty()) {
    text += heading("rewrites");
    for (const ReportRewrite& r : data.rewrites) {
      text +=
          wrapped(fmt::format("  --{}: {} places, bytes {} -> {}, FLOPs {} -> {}", r.name, r.places,
                              human_bytes_text(r.bytes_before), human_bytes_text(r.bytes_after),
                              human_flops(r.flops_before), human_flops(r.flops_after)),
                  4);
      for (const std::string& line : r.lines) text += wrapped("    " + line, 6);
    }
  }
  for (size_t i = 1; i < data.tables.size(); ++i)
    text += heading(data.tables[i].title) + table_text(data.tables[i]);
  if (!data.commands.empty()) {
    text += heading("to reproduce");
    for (const std::string& command : data.commands) text += "  " + flat(command) + "\n";
  }
  for (const auto& [key, value] : data.machine) text += wrapped("  " + key + ": " + value, 4);
  if (!data.notes.empty()) {
    text += heading("notes");
    for (const std::string& note : data.notes) text += wrapped("  " + note, 4);
  }
  return text;
}

}  // namespace tightloop
