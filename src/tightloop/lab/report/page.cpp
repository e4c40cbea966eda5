#include "tightloop/lab/report/page.h"

#include "tightloop/lab/report/svg.h"

namespace tightloop {
namespace {

constexpr std::string_view kStyle = R"css(
:root{--ink:#24292f;--soft:#5a626c;--line:#e4e7eb;--back:#ffffff;--well:#f6f7f9;--link:#0072b2}
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.55rem;line-height:1.3;font-weight:650;margin:0 0 .4rem;text-wrap:balance;
overflow-wrap:anywhere}
h1 .goal,.name{white-space:nowrap}
h2{font-size:1.1rem;font-weight:650;margin:2.6rem 0 .6rem;padding-top:1rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;font-weight:650;margin:1.4rem 0 .3rem}
p{margin:.4rem 0 .8rem;max-width:44rem;overflow-wrap:anywhere}
.sub,.note,figcaption,summary{color:var(--soft)}
.note,figcaption,summary{font-size:.875rem}
figcaption{margin-top:.3rem;max-width:44rem}
figure{margin:.6rem 0 0;position:relative}
svg.chart{display:block;width:100%;height:auto}
svg.phone{display:none}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.875rem;min-width:100%}
th,td{padding:.32rem .4rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;vertical-align:top}
th{font-weight:600;color:var(--soft);vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal;
overflow-wrap:anywhere;min-width:7.4rem}
th.left,td.left{text-align:left;white-space:normal}
tbody tr:last-child td{border-bottom:0}
.verdict{margin:.5rem 0;padding:.1rem 0 .1rem .8rem;border-left:3px solid currentColor}
.verdict p{color:var(--ink);margin:0}
.verdict .word{font-weight:650}
pre{background:var(--well);padding:.7rem .9rem;border-radius:6px;overflow-x:auto;
font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;margin:.5rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.875rem;margin:.6rem 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
ul{padding-left:1.2rem;margin:.4rem 0 .8rem}
li{margin:.15rem 0;overflow-wrap:anywhere}
.bars{display:grid;grid-template-columns:minmax(5rem,max-content) 1fr max-content;gap:.5rem .8rem;
align-items:center;grid-auto-flow:dense;font-size:.875rem;margin:.8rem 0}
.bars .name{grid-column:1;overflow-wrap:anywhere;max-width:14rem}
.bars .bar{grid-column:2}
.bars .total{grid-column:3}
.bar{display:flex;height:1.7rem}
.bar i{display:block;background:currentColor;border-right:1px solid var(--back);min-width:1px;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.875rem;color:var(--soft)}
.keys i{display:inline-block;width:.75rem;height:.75rem;margin-right:.4rem;
background:currentColor;vertical-align:-1px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--back);
font-size:.8rem;line-height:1.4;padding:.4rem .6rem;border-radius:5px;white-space:pre-line;
max-width:19rem;overflow-wrap:anywhere;visibility:hidden}
.m.near .dot,.m.near .ring,.m.near .open,.m.near .spot{stroke:currentColor;fill-opacity:1;stroke-width:3;stroke-opacity:1}
@media (max-width:640px){
main{padding:1.2rem .9rem 3rem}
h1{font-size:1.25rem}
svg.page{display:none}
svg.phone{display:block}
.bars{grid-template-columns:1fr max-content}
.bars .bar{grid-column:1/-1;margin-bottom:.4rem}
.bars .total{grid-column:2}
.bars .name{max-width:none}
}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e3e7eb;--soft:#a3abb5;--line:#2b3037;--back:#15181c;--well:#1d2126;--link:#56b4e9}
}
@media print{
html{color-scheme:light}
body{font-size:10.5pt}
main{max-width:none;padding:0}
svg.page{display:block}
svg.phone{display:none}
h2{break-after:avoid;margin-top:1.4rem}
h3{break-after:avoid}
figure,.verdict,tr,.bars{break-inside:avoid}
.wide{overflow:visible}
table{font-size:8pt}
th,td{padding:.2rem .3rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
details.quiet{display:none}
#tip{display:none}
}
)css";

// Shows the title of the nearest mark within reach of the pointer. The titles move out of the
// marks, or browsers would show them a second time.
constexpr std::string_view kScript = R"js(
(() => {
  const tip = document.getElementById('tip');
  const reach = 26;
  let shown = null;
  const show = (mark, x, y) => {
    if (shown !== mark) {
      if (shown) shown.classList.remove('near');
      if (mark) { mark.classList.add('near'); tip.textContent = mark.dataset.tip; }
      shown = mark;
    }
    tip.style.visibility = mark ? 'visible' : 'hidden';
    if (!mark) return;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    const top = y + 16 + box.height > innerHeight ? y - 12 - box.height : y + 16;
    tip.style.left = Math.max(4, left) + 'px';
    tip.style.top = Math.max(4, top) + 'px';
  };
  for (const svg of document.querySelectorAll('svg.chart')) {
    const outer = svg.querySelector(':scope > title');
    if (outer) { svg.setAttribute('aria-label', outer.textContent); outer.remove(); }
    const marks = [...svg.querySelectorAll('.m')];
    for (const mark of marks) {
      const title = mark.querySelector('title');
      mark.dataset.tip = title.textContent;
      mark.setAttribute('aria-label', title.textContent);
      title.remove();
    }
    const look = (event) => {
      const matrix = svg.getScreenCTM();
      if (!matrix) return;
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
      let best = event.target.closest ? event.target.closest('.m') : null, least = reach;
      if (best) {
        least = 0;
      } else {
        for (const mark of marks) {
          const d = Math.hypot(mark.dataset.x - p.x, mark.dataset.y - p.y);
          if (d < least) { least = d; best = mark; }
        }
      }
      show(best, event.clientX, event.clientY);
    };
    svg.addEventListener('pointermove', look);
    svg.addEventListener('pointerdown', look);
    svg.addEventListener('pointerleave', () => show(null));
  }
})();
)js";

}  // namespace

std::string html_page(std::string_view title, std::string_view body) {
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
      "<link rel=\"icon\" href=\"data:,\">\n<title>";
  html += escape_text(title);
  html += "</title>\n<style>";
  html += kStyle;
  html += chart_style();
  html += "\n</style>\n</head>\n<body>\n<main>\n";
  html += body;
  html += "</main>\n<div id=\"tip\" aria-hidden=\"true\"></div>\n<script>";
  html += kScript;
  html += "</script>\n</body>\n</html>\n";
  return html;
}

}  // namespace tightloop
