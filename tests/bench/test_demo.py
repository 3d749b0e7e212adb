"""What is committed of the demo: one run, by the present code."""

from __future__ import annotations

import json
import re

from bench import demo, result
from ptmst.report import page


def test_the_page_is_of_the_present_template() -> None:
    text = demo.PAGE.read_text()
    found = re.search(r'<meta name="generator" content="([^"]*)">', text)
    assert found and found[1] == page.made_by(), "run python -m bench.demo --out FOLDER"


def test_page_and_results_are_of_one_run() -> None:
    found = json.loads((result.RESULTS / f"{demo.SHOWN}.json").read_text())
    cells = set(re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", demo.PAGE.read_text()))
    for row in found["rows"]:
        assert row["name"] in cells
        assert {f"{one['mean']:.1f}±{one['std']:.1f}" for one in row["recall"].values()} <= cells
