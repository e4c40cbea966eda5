"""Opens reports in headless Chromium: no console errors, pictures with marks, working tooltips, no
sideways scrolling at phone width. Skipped, with a message, where Chromium is missing.

Usage: report_test.py TIGHTLOOP REPORT_TEST    REPORT_TEST is the unit test that writes an example."""
import html
import json
import os
import re
import shutil
import subprocess
import sys
import unittest
import xml.etree.ElementTree as ElementTree

REPORT_TEST = os.path.abspath(sys.argv.pop(2)) if len(sys.argv) > 2 else None

import common  # noqa: E402  (takes its own argument off sys.argv)
from common import LabCase, TINY  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
DARK = "--blink-settings=preferredColorScheme=0"
PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="%s" width="%d" height="4000" style="border:0"></iframe>
<script>
const frame = document.getElementById('page');
frame.onload = () => {
  const d = frame.contentDocument, w = frame.contentWindow, found = {figures: {}};
  const seen = (e) => e.getClientRects().length > 0;
  for (const figure of d.querySelectorAll('figure[id]')) {
    const svg = [...figure.querySelectorAll('svg')].filter(seen);
    const inside = svg.length == 1 ? svg[0].getBoundingClientRect() : null;
    const marks = inside ? [...svg[0].querySelectorAll('.m')] : [];
    const entry = found.figures[figure.id] = {shown: svg.length, marks: marks.length,
        outside: 0, lines: inside ? svg[0].querySelectorAll('polyline').length : 0};
    for (const mark of marks) {
      const shape = mark.querySelector('circle,polygon,rect').getBoundingClientRect();
      const x = (shape.left + shape.right) / 2, y = (shape.top + shape.bottom) / 2;
      if (x < inside.left - 1 || x > inside.right + 1 || y < inside.top - 1 || y > inside.bottom + 1)
        ++entry.outside;
    }
    if (marks.length) {
      const box = marks[0].querySelector('circle,polygon,rect').getBoundingClientRect();
      marks[0].dispatchEvent(new w.PointerEvent('pointermove', {bubbles: true,
          clientX: (box.left + box.right) / 2, clientY: (box.top + box.bottom) / 2}));
      const tip = d.getElementById('tip');
      entry.tip = w.getComputedStyle(tip).visibility == 'visible' ? tip.textContent : '';
    }
  }
  found.overflow = d.documentElement.scrollWidth - d.documentElement.clientWidth;
  found.headline = d.querySelector('h1').textContent;
  found.background = w.getComputedStyle(d.body).backgroundColor;
  const out = document.createElement('pre');
  out.id = 'found';
  out.textContent = JSON.stringify(found);
  document.body.append(out);
};
</script>"""


@unittest.skipUnless(CHROMIUM, "Chromium is not installed (apt-get install chromium)")
class Report(LabCase):
    def chromium(self, page, *flags):
        """Opens a page; what the console says fails the test."""
        result = subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             f"--user-data-dir={self.dir / 'profile'}", "--allow-file-access-from-files",
             "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1400,4200",
             "--disable-dev-shm-usage", *flags, page.as_uri()],
            capture_output=True, text=True, timeout=240, errors="replace")
        console = re.findall(r"CONSOLE.*", result.stderr)
        self.assertEqual(console, [])
        return result

    def browse(self, page, width, *flags):
        """What the probe found on a page of that width."""
        harness = page.with_name("probe.html")
        harness.write_text(PROBE % (page.name, width))
        result = self.chromium(harness, *flags, "--dump-dom")
        match = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.S)
        self.assertTrue(match, result.stderr[-2000:] + result.stdout[-2000:])
        return json.loads(html.unescape(match.group(1)))

    def check(self, found, figures):
        self.assertEqual(found["overflow"], 0)
        for name in figures:
            figure = found["figures"][name]
            self.assertEqual(figure["shown"], 1, name)
            self.assertGreater(figure["marks"], 5, name)
            self.assertEqual(figure["outside"], 0, name)
            self.assertTrue(figure["tip"], name)

    def test_example_report(self):
        made = subprocess.run([REPORT_TEST, "--gtest_filter=Report.WritesExampleFiles"],
                              env=dict(os.environ, TL_REPORT_EXAMPLE=str(self.dir)),
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(made.returncode, 0, made.stdout)
        for name in ("roofline.svg", "quality.svg"):
            ElementTree.parse(self.dir / name)
        page = self.dir / "report.html"
        for width in (1000, 390):
            found = self.browse(page, width)
            self.check(found, ["panel-roofline", "panel-quality", "effects"])
            self.assertTrue(found["headline"].startswith("val_bpb ≤ 1.25: "))
            self.assertGreater(found["figures"]["panel-quality"]["lines"], 4)
            self.assertEqual(found["background"], "rgb(255, 255, 255)")
        dark = self.browse(page, 1000, DARK)
        self.check(dark, ["panel-roofline", "panel-quality"])
        self.assertNotEqual(dark["background"], "rgb(255, 255, 255)")

    def test_report_of_a_lab(self):
        headline = self.made_lab()["headline"]
        page = self.dir / "lab/main/report-G.html"
        for width, *flags in [(1000,), (390,), (1000, DARK), (390, DARK)]:
            found = self.browse(page, width, *flags)
            self.check(found, ["panel-roofline", "panel-quality", "effects"])
            self.assertEqual(found["headline"].replace("\xa0", " ").split(": ", 1)[1], headline)
            self.assertGreater(found["figures"]["panel-roofline"]["marks"], 40)
            self.assertGreater(found["figures"]["panel-quality"]["lines"], 8)   # a seed each, means
            self.assertEqual(found["background"] == "rgb(255, 255, 255)", DARK not in flags)
        pdf = self.dir / "report.pdf"
        self.chromium(page, f"--print-to-pdf={pdf}")
        self.assertGreaterEqual(len(re.findall(rb"/Type /Page\b", pdf.read_bytes())), 1)
        self.assertGreater(pdf.stat().st_size, 100000)

    def test_explain_html(self):
        result = self.run_tool("explain", "--data", self.data, *TINY, "--fused-rmsnorm",
                               "--rounds", "2", "--html", "roof.html", "--svg", "roof.svg")
        self.assertEqual(result.returncode, 0, result.stderr)
        ElementTree.parse(self.dir / "roof.svg")
        found = self.browse(self.dir / "roof.html", 1000)
        self.check(found, ["panel-roofline"])
        self.assertGreater(found["figures"]["panel-roofline"]["marks"], 40)
        self.assertIn("A step takes", found["headline"])


if __name__ == "__main__":
    unittest.main()
