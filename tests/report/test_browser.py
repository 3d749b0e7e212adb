"""Pages in a real browser, where there is one: no console message, no network, nothing wider than a phone, and none of
what axe finds serious for those who see little or use a keyboard.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from reported import course, examples, rows

from ptmst.report.live import LivePage
from ptmst.report.page import write_report
from ptmst.support.progress import Log, Underway

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no browser")]
LOOK = """
<script>
const seen = document.querySelector("td, progress").getBoundingClientRect();
const headline = document.querySelector(".headline, p").getBoundingClientRect();
const found = {
  wide: document.documentElement.scrollWidth, inner: innerWidth, first: [seen.left, seen.right],
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  headline: headline.bottom,
  order: [...document.querySelectorAll("h1, h2")].map(heading => heading.tagName),
};
for (const fold of document.querySelectorAll("details")) fold.open = true;
axe.run().then(result => {
  found.axe = result.violations.map(one => [one.impact, one.id, one.nodes.map(node => node.html.slice(0, 200))]);
  found.passed = result.passes.map(one => one.id);
  document.title = JSON.stringify(found);
});
</script>
"""


def looked_at(page: Path, width: int, dark: bool) -> tuple[dict[str, Any], str]:
    """What a browser makes of a page, and what it says."""
    axe = (resources.files("axe_core_python") / "axe.min.js").read_text("utf-8")
    content = re.sub(r'<meta http-equiv="refresh".*?>', "", page.read_text("utf-8"))
    copy = page.with_name("looked-at.html")
    copy.write_text(content.replace("</body>", f"<script>{axe}</script>{LOOK}</body>"), "utf-8")
    assert BROWSER is not None
    offline = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    shown = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [BROWSER, *offline, *shown, "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.findall("<title>(.*?)</title>", done.stdout)[0]
    found: dict[str, Any] = json.loads(unescape(title))
    return found, done.stderr


def report(out: Path) -> None:
    write_report(out, "A title", rows(), "ptmst report", examples=examples())


def live(out: Path) -> None:
    log = Log()
    log.lines.append("2/4 teachers: experts on all real pairs")
    log.bars["experts"] = Underway(3, 10, "expert 3", 0.5)
    LivePage(out, "A run", "ptmst run", [course(out.with_name("course.json"))]).write(log)


@pytest.mark.parametrize(
    ("write", "width", "dark"),
    [
        *((report, width, dark) for width in (1280, 390) for dark in (False, True)),
        *((live, width, dark) for width, dark in ((1280, False), (390, True))),
    ],
)
def test_a_browser_shows_a_page(tmp_path: Path, write: Callable[[Path], None], width: int, dark: bool) -> None:
    write(tmp_path / "page.html")
    found, said = looked_at(tmp_path / "page.html", width, dark)
    assert "CONSOLE" not in said and "ERR_" not in said
    assert found["wide"] <= found["inner"]  # what is wider scrolls within itself
    left, right = found["first"]
    assert 0 < left < right < found["inner"]
    assert found["headline"] < 900
    assert found["order"][0] == "H1" and set(found["order"][1:]) == {"H2"}
    light = [sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink")]
    assert (light[0] < light[1]) is dark
    assert "color-contrast" in found["passed"] and "image-alt" in found["passed"]
    assert [one for one in found["axe"] if one[0] in ("serious", "critical")] == []


def test_axe_finds_what_is_wrong(tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", "A title", rows(), "ptmst report")
    page = tmp_path / "page.html"
    page.write_text(re.sub(r' alt=".*?"', "", page.read_text()).replace("--quiet: #555", "--quiet: #ddd"))
    found, _ = looked_at(page, 1280, dark=False)
    assert {"image-alt", "color-contrast"} <= {one[1] for one in found["axe"]}
