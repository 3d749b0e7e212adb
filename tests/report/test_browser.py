"""The page in a real browser, where there is one: no console message, no network, nothing wider than a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from reported import rows

from ptmst.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no browser")]
LOOK = """
<script>
const seen = document.querySelectorAll("td")[0].getBoundingClientRect();
document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, inner: innerWidth, mean: [seen.left, seen.right],
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  headline: document.querySelector(".headline").getBoundingClientRect().bottom,
  unlabelled: [...document.querySelectorAll("img")].filter(image => !image.alt).length,
  order: [...document.querySelectorAll("h1, h2")].map(heading => heading.tagName),
});
</script>
"""


def looked_at(page: Path, width: int, *flags: str) -> tuple[dict[str, Any], str]:
    """What a browser makes of a page, and what it says."""
    copy = page.with_name("looked-at.html")
    copy.write_text(page.read_text("utf-8").replace("</body>", f"{LOOK}</body>"), "utf-8")
    assert BROWSER is not None
    offline = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [BROWSER, *offline, "--enable-logging=stderr", f"--window-size={width},900", *flags, "--dump-dom"]
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    found: dict[str, Any] = json.loads(unescape(title))
    return found, done.stderr


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page(tmp_path: Path, width: int, dark: bool) -> None:
    write_report(tmp_path / "page.html", "A title", rows(), "ptmst report")
    found, said = looked_at(tmp_path / "page.html", width, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert "CONSOLE" not in said and "ERR_" not in said
    assert found["wide"] <= found["inner"]  # what is wider scrolls within itself
    left, right = found["mean"]
    assert 0 < left < right < found["inner"]
    assert found["headline"] < 900 and found["unlabelled"] == 0
    assert found["order"][0] == "H1" and set(found["order"][1:]) == {"H2"}
    light = [sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink")]
    assert (light[0] < light[1]) is dark
