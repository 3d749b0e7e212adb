"""README and docs: tables are those of bench/results, links lead somewhere, commands parse and examples run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image
from test_architecture import MAY_IMPORT, ROOF, ROOT

import ptmst
from bench import cpu_tables, demo, presets, readme, strip
from bench.readme import PAGES, TABLES, written
from ptmst import cli
from ptmst.config import WriteDataConfig
from ptmst.presets import experiment
from ptmst.report.sets import spread
from ptmst.studies.demo import METHODS
from tiny import DISTILL, tiny_store

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"))
}
LINKS = sorted({(page, link) for page, text in DOCUMENTS.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)})


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every line of a fenced block that calls ptmst, continued lines joined."""
    lines = (line for _, block in blocks(text) for line in block.replace("\\\n", " ").splitlines())
    return [line.split(" #")[0].strip() for line in lines if line.startswith("ptmst ")]


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


COMMANDS = sorted({(page, line) for page, text in DOCUMENTS.items() for line in commands(text) if "…" not in line})
"""Those of the tutorial need its files: its pages are executed as a whole (test_tutorial.py)."""


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_results(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert written(text, PAGES[page]) == text


def test_every_table_is_shown() -> None:
    shown = re.findall(r"<!-- table: (\S+) -->", "".join((ROOT / page).read_text() for page in PAGES))
    assert set(shown) == set(TABLES)


def test_documents_are_in_a_table_of_readme() -> None:
    linked = {link.partition("#")[0] for page, link in LINKS if page == "README.md"}
    assert {page for page in DOCUMENTS if page.startswith("docs/")} <= linked


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page}:{link}" for page, link in LINKS])
def test_a_link_leads_somewhere(page: str, link: str) -> None:
    if link.startswith(("https://", "http://")):
        return
    name, _, anchor = link.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.exists()
    if anchor:
        assert anchor in anchors(path.read_text())


@pytest.mark.parametrize(
    "line", sorted({line for page, line in COMMANDS if page not in ("docs/tutorial.md", "docs/by-hand.md")})
)
def test_a_command_can_be_parsed(line: str) -> None:
    _, *arguments = shlex.split(line)
    cli.parse(arguments)


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for _, line in COMMANDS} == set(cli.COMMANDS)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
    python, shell = (block.splitlines() for _, block in blocks(README) if re.match(r"import ptmst|ptmst ", block))
    assert len(python) <= 12 and len(shell) <= 12
    prose = re.sub(r"^```.*?^```|^\|.*?$|<!-- table.*?<!-- end -->", "", README, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"[.:]\s|\n\n|\n\* ", prose)
    assert max(len(sentence.split()) for sentence in sentences) <= 20


def test_the_example_runs_at_a_smaller_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (block for language, block in blocks(README) if language == "python")
    whole = experiment("demo")
    # The tower at random, on smaller pictures: the rest is as it is shown.
    encoder = replace(whole.teach.encoder, image_tower="convnet", image_weights=None, image_width=16)
    teach = replace(whole.teach, experts=1, encoder=encoder, data=replace(whole.teach.data, image_size=16))
    distill, evaluate = replace(whole.distill, steps=2), replace(whole.evaluate, students=1, epochs=2)
    long = 'experiment("demo")'
    assert long in example
    names: dict[str, Any] = {"smaller": replace(whole, teach=teach, distill=distill, evaluate=evaluate)}
    exec(example.replace(long, "smaller"), names)
    assert names["distilled"].num_pairs == 100
    assert ptmst.DistilledSet.load("runs/emoji-100").num_pairs == 100


def test_the_example_in_python_is_that_of_the_command_line() -> None:
    settings = experiment("demo")
    assert settings.data == WriteDataConfig("emoji") and str(settings.data.folder) == "data/emoji"
    assert settings.teach.data.folder == settings.data.folder
    assert 'write_emoji("data/emoji")' in README


def test_the_tree_is_the_real_one_by_floors() -> None:
    """A line of the tree may import what is below it, and is imported by nothing below it."""
    (tree,) = (block for _, block in blocks(README) if block.startswith("ptmst/cli"))
    floors = [re.split(r" {3,}", line)[0].split() for line in tree.splitlines()]
    named = [[name.removeprefix("ptmst/") for name in floor] for floor in floors]
    assert {name for floor in named for name in floor} == {*MAY_IMPORT, *ROOF} - {"errors", "__main__", "__init__"}
    floor_of = {name: number for number, floor in enumerate(named) for name in floor}
    ground = len(named) - 1
    for name, others in MAY_IMPORT.items():
        for other in others - {"errors"}:
            assert floor_of[other] > floor_of[name] or floor_of[name] == ground, f"{name} may import {other}"
    assert named[:2] == [["cli"], ["studies"]]


def test_what_all_published_rows_have_in_common() -> None:
    for name in (name for name in presets.names() if "," not in name):
        config = experiment(name).distill
        assert (config.trajectory, config.expert_epochs, config.adjoint) == ("shortcut", 1, 0), name
        assert config.ema > 0 and experiment(name).teach.encoder.image_tower == "timm:nfnet_l0"


def test_the_citations_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = cited["preferred-citation"]
    assert cited["cff-version"] == "1.2.0" and str(cited["version"]) == ptmst.__version__
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    for shown in (paper["title"], authors, str(paper["year"]), paper["collection-title"]):
        assert f"{{{shown}}}" in README
    assert paper["url"] in README


def test_the_strip_is_small() -> None:
    picture = ROOT / "docs" / "strip.png"
    assert picture.stat().st_size < 150_000
    with Image.open(picture) as image:
        assert image.width == strip.WIDTH


def test_a_strip_shows_pairs_as_they_began_and_as_they_are(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tiny_store(tmp_path_factory)
    steps = replace(DISTILL, steps=1, rates=ptmst.LeafRates(images=0, texts=0, lr=0, similarity=0))
    ptmst.distill(steps, store).save(tmp_path / "set")
    before, after = strip.rows(tmp_path / "set", None)
    assert len(before) == len(after) == strip.COUNT
    assert len({one.picture.tobytes() for one in after}) == strip.COUNT
    for one, other in zip(before, after, strict=True):
        assert (one.picture == other.picture).all() and one.caption == other.caption
    strip.draw([before, after], tmp_path / "both.png")
    strip.draw([after], tmp_path / "one.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "one.png") as one_row:
        assert both.width == one_row.width == strip.WIDTH and both.height > one_row.height
    (alone,) = strip.rows(tmp_path / "set", tmp_path / "nowhere")
    assert len(alone) == strip.COUNT


@pytest.mark.parametrize("sizes", [(50, 50), (99,), (3, 300), (1, 1, 1)])
def test_pairs_are_spread_over_phases(sizes: tuple[int, ...]) -> None:
    chosen = spread(sizes, strip.COUNT)
    assert len(chosen) == len(set(chosen)) <= strip.COUNT
    assert all(0 <= pair < sizes[phase] for phase, pair in chosen)
    assert {phase for phase, _ in chosen} == set(range(len(sizes)))
    assert all(a < b for a, b in pairwise(chosen))


def test_the_examples_of_kernels_run() -> None:
    """One after the other; the matching loss of the first goes down."""
    examples = [block for language, block in blocks(DOCUMENTS["docs/kernels.md"]) if language == "python"]
    assert len(examples) == 2
    losses: list[float] = []
    step = "    optimizer.step()\n"
    assert step in examples[0]
    names: dict[str, Any] = {"losses": losses}
    exec(examples[0].replace(step, f"{step}    losses.append(matched.loss.item())\n"), names)
    assert len(losses) == 20
    assert sum(losses[-4:]) < sum(losses[:4])
    exec(examples[1], names)
    assert names["logit_scale"].grad is not None and names["images"].grad.shape == (64, 32)


def test_the_picture_is_of_the_set_that_the_headline_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(**means: float) -> dict[str, Any]:
        return {"rows": [{"name": name, "recall": {"mean": {"mean": mean}}} for name, mean in means.items()]}

    shown = {"random": 9.0, **dict.fromkeys(METHODS.values(), 1.0), "all": 20.0} | {METHODS["ptm-st"]: 2.0}
    monkeypatch.setattr(cpu_tables, "measured", lambda name: rows(**shown))
    assert readme.best("any") == METHODS["ptm-st"] and demo._folder_of(readme.best("any")) == "ptm-st"
