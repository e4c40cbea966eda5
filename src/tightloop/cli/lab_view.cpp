#include "tightloop/cli/lab_view.h"

#include <algorithm>

#include "tightloop/lab/statistics.h"

namespace tightloop::cli {

double LabView::seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

std::string LabView::eta(double cell_left) const {
  if (finished_s_.empty()) return "";
  const double others = median_of(finished_s_) * static_cast<double>(cells_ - index_ - 1);
  return "  eta " + duration(cell_left + others);
}

void LabView::on_cell(const Cell& cell, int64_t index, int64_t cells, bool resumed) {
  index_ = index;
  cells_ = cells;
  started_ = Clock::now();
  if (!terminal_)
    talk(fmt::format("cell {}/{}  {}{}\n", index + 1, cells, cell.name,
                     resumed ? "  (continued)" : ""));
}

void LabView::on_step(const Cell& cell, int64_t step, int64_t steps, double loss) {
  const auto now = Clock::now();
  if (!terminal_ || std::chrono::duration<double>(now - shown_).count() < 0.1) return;
  shown_ = now;
  const double spent = seconds(started_);
  const double share = static_cast<double>(step) / static_cast<double>(steps);
  const double cell_left = std::max(median_of(finished_s_) * (1.0 - share), spent / share - spent);
  talk(fmt::format("\r\033[Kcell {}/{}  {:<22} step {:>5}/{}  {:3.0f}%  loss {:.3f}{}", index_ + 1,
                   cells_, cell.name, step, steps, 100 * share, loss, eta(cell_left)));
  open_line_ = true;
}

void LabView::on_row(const Cell& cell, const LedgerRow& row) {
  const double took = seconds(started_);
  if (row.text("status") == "ok" && started_ != Clock::time_point{}) finished_s_.push_back(took);
  if (open_line_) talk("\r\033[K");
  open_line_ = false;
  const auto time = row.number("time_to_target_sec_measured");
  std::string text = fmt::format("{:<26} {:<9}", cell.name, row.text("status"));
  if (row.text("status") == "ok") {
    text += time ? fmt::format(" target after {:.2f} s, {:.1f} steps", *time,
                               row.number("steps_to_target").value_or(0.0))
                 : std::string(" target not reached");
    text += fmt::format("  {:>6} tok/s  step {:.2f} ms",
                        human(row.number("tok_per_sec_median").value_or(0.0)),
                        row.number("dt_median_ms").value_or(0.0));
  } else {
    text += " " + row.text("detail");
  }
  talk(fmt::format("{}{}\n", text, eta(0.0)));
}

void LabView::close() {
  if (open_line_) talk("\n");
  open_line_ = false;
}

}  // namespace tightloop::cli
