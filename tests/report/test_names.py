"""Names of sets and folders that mean something to what renders them come out as they are, and nothing else does."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ptmst.evaluation.metrics import METRICS, TIES
from ptmst.evaluation.scores import Scores
from ptmst.report.page import _recall_figure, write_report
from ptmst.report.tables import Row, recall_table, write_table
from ptmst.support import progress

SCORES = Scores(
    (dict.fromkeys(METRICS, 12.5),),
    {"split": "test", "ties": TIES, "config": {"protocol": "per-phase", "select": "last"}, "pairs": 7},
)
NAMES = {
    "html": "<script>alert(1)</script>",
    "entity": "a &amp; b &lt; c & d",
    "tag": "</td></table><img src=x onerror=y>",
    "markdown": "*a* _b_ `c` [d](e) ~~f~~ **g** __h__ \\ snake_case_name",
    "pipe": "a|b|c",
    "latex": r"50% of $x$ \input{y} a_b^c #1 {z} ~",
    "start": "[1] *x",
    "mathtext": r"$\frac{1}{$ and $x$ and $\nothing$",
    "markup": "[red]x[/red] [/] :smile:",
    "underscore": "_hidden",
    "chinese": "犬の写真",
    "number": "10",
    "spaces": "a  b",
}
STEERED = {"a\x1b[31mb": r"a\x1b[31mb", "a\x00b": r"a\x00b", "two\nlines\tx": r"two\nlines\tx", "a\u202eb": r"a\u202eb"}
ALL = {**dict(zip(NAMES.values(), NAMES.values(), strict=True)), **STEERED, "caf\udce9": r"caf\udce9"}
EACH = pytest.mark.parametrize(("name", "shown"), ALL.items(), ids=[*NAMES, *map(ascii, STEERED), "latin-1"])


class Texts(HTMLParser):
    """The text of each cell and heading, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells, self.tags, self._in = list[str](), set[str](), 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "h2", "summary"):
            self.cells.append("")
            self._in += 1

    def handle_endtag(self, tag: str) -> None:
        self._in -= tag in ("td", "th", "h2", "summary")

    def handle_data(self, data: str) -> None:
        if self._in:
            self.cells[-1] += data


def rows(name: str) -> list[Row]:
    return [Row(name, SCORES, 7), Row("plain", replace(SCORES, students=(dict.fromkeys(METRICS, 9.0),)), 7)]


def written(path: Path, name: str) -> str:
    write_table(path, rows(name))
    return path.read_text("utf-8")


@EACH
def test_markdown(name: str, shown: str, tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt
    html = markdown("commonmark").enable(["table", "strikethrough"]).render(written(tmp_path / "t.md", name))
    found = Texts(html)
    assert re.sub(" +", " ", shown) in [re.sub(" +", " ", cell) for cell in found.cells]
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"} and len(found.cells) % 9 == 0


@pytest.mark.slow
def test_html(tmp_path: Path) -> None:
    every = [row for name in ALL for row in rows(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path / "r.html", " ".join(ALL), every)
    page = (tmp_path / "r.html").read_text("utf-8")
    found = Texts(page)
    assert set(ALL.values()) <= set(found.cells) and not {"script", "img"} & found.tags
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)


@pytest.mark.slow
def test_plots() -> None:
    """Whole XML, in which each name is a text and each row has its own bar."""
    every = [row for name in ALL for row in rows(name)]
    svg = ElementTree.fromstring(_recall_figure(every))
    texts = ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("plain") == len(ALL) and all(shown in texts for shown in ALL.values())


@EACH
def test_terminal(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress.table(recall_table(rows(name), "of its own: [x]"))
    said = capsys.readouterr().out
    assert shown in said and "\x1b" not in said


@EACH
def test_data(name: str, shown: str, tmp_path: Path) -> None:
    """Data keep a name as it is, byte by byte; what is no Unicode is an escape."""
    table = next(csv.DictReader(io.StringIO(written(tmp_path / "t.csv", name))))
    assert table["trained on"] == name.encode("utf-8", "backslashreplace").decode()
    assert json.loads(written(tmp_path / "t.json", name))[0]["trained on"] == name


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        (
            NAMES["latex"],
            r"50\% of \$x\$ \textbackslash{}input\{y\} a\_b\textasciicircum{}c \#1 \{z\} \textasciitilde{}",
        ),
        (NAMES["start"], "{[}1{]} {*}x"),
        ("a--b---c", "a-{}-b-{}--c"),
        ("<a|b>`", r"\textless{}a\textbar{}b\textgreater{}\textasciigrave{}"),
        ("two\nlines", r"two\textbackslash{}nlines"),
    ],
)
def test_latex(name: str, latex: str, tmp_path: Path) -> None:
    lines = written(tmp_path / "t.tex", name).splitlines()
    assert any(line.startswith(f"{latex} & 7 & ") and line.endswith(r" \\") for line in lines)
    assert len([line for line in lines if line.startswith("%")]) == 1
