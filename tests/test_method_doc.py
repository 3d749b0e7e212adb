"""docs/method.md says what is so: its sections, its names, its settings and its figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import ptmst
from bench import method_figure
from ptmst.presets import experiment, methods

ROOT = method_figure.ROOT
PAGE = "docs/method.md"
TEXT = (ROOT / PAGE).read_text()
FOLDERS = ("ptmst", "kernels", "bench", "tests", "docs")
SUFFIXES = {".py", ".md", ".toml", ".hpp", ".cpp", ".h", ".txt", ".jinja", ".sh"}
SECTIONS = [int(number) for number in re.findall(r"^## §(\d+) \S", TEXT, re.MULTILINE)]
BODIES = dict(zip(SECTIONS, re.split(r"^## .*\n", TEXT, flags=re.MULTILINE)[1:], strict=True))
CITED = re.compile(r"(?<!\w)method\.md((?:(?:,| and)? ?§\d+(?:[–-]§?\d+)?)+)")
OUTSIDE = re.compile(r"\bMETHOD(?: §|\.md)|\bFACT[S]\b")
"""Notes that are not in the repository."""


def sources() -> dict[str, str]:
    """Every text file of the product, by its path."""
    paths = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
    return {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *paths)}


def numbers(citation: str) -> Iterator[int]:
    """`§3–§5, §9` → 3, 4, 5, 9."""
    for first, last in re.findall(r"§(\d+)(?:[–-]§?(\d+))?", citation):
        yield from range(int(first), int(last or first) + 1)


def rows(section: int, first: str) -> list[list[str]]:
    """The cells of a section's table whose heading begins with `first`."""
    (table,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", BODIES[section], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_sections_are_numbered_without_holes() -> None:
    assert list(range(1, 11)) == SECTIONS


def test_ranges_and_lists_of_sections_are_read() -> None:
    (found,) = CITED.findall("(docs/method.md §1, §3–§5 and §9; kernels)")
    assert list(numbers(found)) == [1, 3, 4, 5, 9]


def test_every_cited_section_exists() -> None:
    cited = [(path, n) for path, text in sources().items() for found in CITED.findall(text) for n in numbers(found)]
    assert [(path, n) for path, n in cited if n not in SECTIONS] == []


def test_nothing_outside_the_repository_is_cited() -> None:
    assert [(path, old) for path, text in sources().items() for old in OUTSIDE.findall(text)] == []


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)\s]+)\)", TEXT))))
def test_a_link_leads_somewhere(link: str) -> None:
    if link.startswith("https://"):
        return
    name, _, anchor = link.partition("#")
    path = ROOT / "docs" / name if name else ROOT / PAGE
    assert path.exists()
    if anchor:
        assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)}


def test_the_glossary_defines_each_term_once_in_order() -> None:
    terms = re.findall(r"^\* \*\*(.+?)\*\*: ", BODIES[10], re.MULTILINE)
    assert len(terms) == len(re.findall(r"^\* ", BODIES[10], re.MULTILINE)) > 30
    assert all(a < b for a, b in pairwise(terms))
    assert [term for term in re.findall(r": see \*(.+?)\*", BODIES[10]) if term not in terms] == []


def test_every_name_exists() -> None:
    named = re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", TEXT)
    assert len(named) > 30
    for name, attribute in named:
        if name in ("END", "START"):  # of published code
            continue
        assert name in ptmst.__all__
        value = getattr(ptmst, name)
        assert not attribute or hasattr(value, attribute) or attribute in value.__annotations__


def test_defaults_are_those_of_the_settings() -> None:
    teach, distill, evaluate = ptmst.TeachConfig(), ptmst.DistillConfig(), ptmst.EvaluateConfig()
    training = f"rate {teach.lr}, batches of {teach.batch_size}, {teach.epochs} epochs, {teach.experts} experts"
    assert training in BODIES[1]
    assert f"temperature, {distill.temperature} unless set" in BODIES[1]
    assert f"$c = {distill.adjoint}$, κ = {distill.adjoint_clip:g}" in BODIES[4]
    assert f"ρ is {distill.ema};" in BODIES[5]
    values = {cells[0]: cells[1] for cells in rows(6, "setting")}
    assert values["students"].startswith(f"{evaluate.students};")
    assert f"momentum {evaluate.momentum}, weight decay $5 \\cdot 10^{{-4}}$" in values["optimizer"]
    assert evaluate.weight_decay == 5e-4
    assert values["learning rate"].endswith(f"after epoch {evaluate.lr_drop}")
    assert values["length"] == f"{evaluate.epochs + 1} epochs in each phase, numbered 0 to {evaluate.epochs}"
    assert f"the first {evaluate.batch_size} of a new permutation" in values["batches"]
    assert f"`{evaluate.protocol}` (default)" in BODIES[6] and f"`{evaluate.select}` (default)" in BODIES[6]
    assert f"score every {evaluate.every} epochs" in BODIES[6]


def test_every_loss_has_a_line() -> None:
    from ptmst.kernels.reference import LOSSES

    assert {cells[0].strip("`") for cells in rows(1, "`loss`")} == set(LOSSES)


def test_methods_are_those_of_the_presets() -> None:
    shown = {}
    for cells in rows(9, "method"):
        name, *values, _ = (cell.strip("`") for cell in cells)
        shown[name] = values
    assert set(shown) == set(methods())
    for name, values in shown.items():
        whole = experiment(f"flickr30k-500,{name}")
        config = whole.distill
        assert values == [
            str(len(config.phases)),
            config.trajectory,
            "frozen" if whole.teach.encoder.freeze_tower else "trained",
            "identity" if config.rates.similarity == 0 else config.similarity,
            config.loss,
            f"{config.adjoint:g}",
            "–" if config.adjoint_clip is None else f"{config.adjoint_clip:g}",
            f"{config.ema:g}",
            f"{config.blend:g}",
        ]


def test_sizes_of_replay_buffers_add_up() -> None:
    parameters = [int(n.replace(",", "")) for n in re.findall(r"\(([\d,]{9,})", BODIES[8])]
    timestamp = 4 * sum(parameters)
    assert f"{timestamp / 1e6:.1f} MB a timestamp" in BODIES[8]
    *parts, whole = rows(8, "buffers")
    sizes = [20 * int(cells[1]) * timestamp / 1e9 for cells in parts]
    assert [f"{size:.1f} GB" for size in sizes] == [cells[2] for cells in parts]
    assert f"{sum(sizes):.1f} GB" == whole[2]


def test_the_figure_shows_a_shortcut() -> None:
    found = method_figure.geometry()
    beta = found.shortcut.beta[:, 0]
    assert beta[0] == 0 and beta[-1] == 1 and bool((beta.diff() > 0).all())
    assert found.loss_after < found.loss_before
    # The shortcut of a shortcut is itself.
    lengths = found.knots.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(lengths.cumsum(0) / lengths.sum(), beta[1:], rtol=1e-3, atol=1e-3)


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    assert "](method/shortcut.png)" in TEXT and method_figure.PICTURE.exists()
    method_figure.draw(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
