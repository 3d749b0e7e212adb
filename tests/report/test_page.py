"""The recall table and the page: whole, self-contained, escaped, and the same for the same input."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reported import distilled, rows, scores
from rich.console import Console

from ptmst import DistilledSet, FullSimilarity, InputError, SyntheticPairs, TrajectoryStore
from ptmst.data import normalize
from ptmst.data.sampling import random_subset
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.metrics import METRICS
from ptmst.evaluation.scores import write_scores
from ptmst.report import page, sets
from ptmst.report.page import write_report
from ptmst.report.tables import Row, read_row, recall_table, what_numbers_are
from ptmst.synthetic.distilled_set import DistilledPhase
from tiny import tiny_store

VOID = {"meta", "img", "br", "link", "path", "use", "rect"}


class Parsed(HTMLParser):
    """What a page is made of; open elements must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path: Path, found: list[Row], title: str = "A title", command: str | None = None) -> str:
    write_report(tmp_path / "page.html", title, found, command)
    return (tmp_path / "page.html").read_text("utf-8")


def cells(row: Row) -> list[str]:
    values = [[student[metric] for student in row.scores.students] for metric in METRICS]
    return [f"{mean(v):.1f}±{stdev(v) if len(v) > 1 else 0.0:.1f}" for v in values]


def test_the_table_holds_mean_and_deviation_of_every_recall() -> None:
    table = recall_table(rows())
    columns = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns][2:] == [
        *("IR@1", "IR@5", "IR@10"),
        *("TR@1", "TR@5", "TR@10"),
        "mean",
        "of all",
    ]
    full = mean(student["mean"] for student in rows()[2].scores.students)
    for i, row in enumerate(rows()):
        share = f"{100 * mean(student['mean'] for student in row.scores.students) / full:.0f} %"
        assert [column[i] for column in columns] == [row.name, f"{row.pairs:,}", *cells(row), share]
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert all(cell in console.file.getvalue() for row in rows() for cell in cells(row))


@pytest.mark.slow
def test_the_page_stands_alone(tmp_path: Path) -> None:
    parsed = Parsed(page_of(tmp_path, rows(), command="ptmst report <x>"))
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "iframe", "object", "video", "audio")]
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value[:60])
    assert not re.search(r"url\((?!#)|@import", (tmp_path / "page.html").read_text())


@pytest.mark.slow
def test_the_page_shows_everything(tmp_path: Path) -> None:
    page = page_of(tmp_path, rows(), title="Pairs & <recalls>", command="ptmst report <x>")
    assert escape(what_numbers_are(rows()), quote=False) in page and "Recall on val in percent" in page
    parsed = Parsed(page)
    text = "".join(parsed.text)
    assert "Pairs & <recalls>" in text and "ptmst report <x>" in text
    for row in rows():
        full = mean(student["mean"] for student in rows()[2].scores.students)
        share = f"{100 * mean(student['mean'] for student in row.scores.students) / full:.0f} %"
        *recalls, average = cells(row)
        entry = "".join(f"<td>{cell}</td>" for cell in (average, share, f"{row.pairs:,}", *recalls))
        assert entry in page
        assert row.name in text
    best_first = sorted(rows(), key=lambda row: -row.scores.mean())
    captions = [
        caption for row in best_first if row.distilled for phase in row.distilled.phases for caption in phase.captions
    ]
    assert [unescape(found) for found in re.findall("<figcaption>(.*?)</figcaption>", page)] == captions
    # And the soft labels of three phases.
    assert len(parsed.all("img")) == len(captions) + 3 == 13
    assert all(image["alt"] and image["loading"] == "lazy" for image in parsed.all("img"))
    assert len(parsed.all("svg")) == 2
    assert "<script" not in page and "<b>" not in page
    assert json.dumps({"seed": 7})[1:-1] in text and "<by hand>" in text


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


def far_from(real: TrajectoryStore, count: int = 5) -> DistilledSet:
    """Real pictures of 16×16 pixels in two phases, each with one pixel that differs by 64 in all colors."""
    made = random_pairs(real, count, 0.1, 0)
    pixels = made.pixels(0).int()
    pixels[:, :, 3, 4] = (pixels[:, :, 3, 4] - 64).where(pixels[:, :, 3, 4] >= 64, pixels[:, :, 3, 4] + 64)
    images, (pairs,) = normalize(pixels.byte()), made
    phases = []
    for part in (slice(0, 2), slice(2, count)):
        captions = made.phases[0].captions[part]
        own = SyntheticPairs(images[part], pairs.texts[part], FullSimilarity.identity(len(captions)), pairs.lr)
        phases.append(DistilledPhase(own, pairs.lr, captions))
    return replace(made, phases=tuple(phases), provenance={"method": "by hand"})


def images_of(html: str) -> list[Image.Image]:
    """All but the maps of soft labels."""
    found = (attributes for attributes in Parsed(html).all("img") if attributes.get("class") != "map")
    sources = [attributes["src"] or "" for attributes in found]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) for source in sources]


@pytest.mark.slow
def test_each_folded_picture_has_the_nearest_real_one_beside_it(
    tmp_path: Path, real: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "SHOWN", 0)
    made = far_from(real)
    html = page_of(
        tmp_path, [Row("ours", scores(20.0), 5, made), Row("random", scores(9.0), 5, random_pairs(real, 5, 0.1, 0))]
    )
    away = f"{(64**2 / 16**2) ** 0.5:.1f}"
    assert f"0 … 255: {away} in the median." in html
    pairs = real.recipe.pairs("train")
    begun = pairs.image_of_text[random_subset(pairs, 0, 5)]
    captions = [pairs.captions[pairs.image_of_text.tolist().index(image)] for image in begun.tolist()]
    shown = re.findall(
        '<div class="real"><img src="[^"]*" alt="nearest real picture" loading="lazy"><span>(.*?)</span></div>', html
    )
    assert [unescape(text) for text in shown] == [f"{away}: {caption}" for caption in captions]
    # Of the random pairs, which are real, there are no others.
    assert len(images_of(html)) == 5 + 5 + 5
    for shown_image, image in zip(images_of(html)[1:10:2], begun.tolist(), strict=True):
        pixels = pairs.pixels(torch.tensor([image]))[0].permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(shown_image.convert("RGB"), dtype=float) - pixels).mean() < 12
    assert "the one that the picture began as" not in html
    write_report(tmp_path / "page.html", "A title", [Row("ours", scores(20.0), 5, made)], nearest=False)
    assert len(images_of((tmp_path / "page.html").read_text("utf-8"))) == 5


@pytest.mark.slow
def test_what_pictures_began_as_is_told(tmp_path: Path, real: TrajectoryStore) -> None:
    made = replace(far_from(real), provenance={"method": "trajectory matching", "config": {"seed": 0}})
    html = page_of(tmp_path, [Row("ours", scores(20.0), 5, made)])
    away = f"{(64**2 / 16**2) ** 0.5:.1f}"
    (told,) = re.findall(r"For 5 of 5 it is the one .*? away\.", html)
    assert f"From there it moved by {away} in the median, while the nearest other real picture was " in told
    # Each beside what it began as, and the caption of then where it is another now.
    pairs = real.recipe.pairs("train")
    texts = random_subset(pairs, 0, 5)
    shown = images_of(html)
    assert len(shown) == 2 * 5
    for before, after, text in zip(shown[::2], shown[1::2], texts.tolist(), strict=True):
        pixels = pairs.pixels(pairs.image_of_text[text].view(1))[0].permute(1, 2, 0).numpy()
        near, far = (np.abs(np.asarray(one.convert("RGB"), dtype=float) - pixels) for one in (before, after))
        assert near.mean() < 12 and far[3, 4].mean() > near[3, 4].mean() + 5
    struck = [unescape(found) for found in re.findall("<del>(.*?)</del>", html)]
    now = [caption for phase in made.phases for caption in phase.captions]
    then = [pairs.captions[text] for text in texts.tolist()]
    assert struck == [old for old, new in zip(then, now, strict=True) if old != new]


@pytest.mark.slow
def test_twelve_pairs_are_shown_and_the_rest_is_folded(tmp_path: Path) -> None:
    many = distilled(phases=1)
    pairs = many[0]
    wide = SyntheticPairs(
        pairs.images.repeat(10, 1, 1, 1), pairs.texts.repeat(10, 1), FullSimilarity.identity(30), pairs.lr
    )
    phase = replace(many.phases[0], pairs=wide, captions=tuple(f"caption {i}" for i in range(30)))
    html = page_of(tmp_path, [Row("ours", scores(20.0), 30, replace(many, phases=(phase,)))])
    open_part, folded = html.split("<summary>18 more pairs</summary>")
    assert open_part.count("<figure>") == 12 and folded.count("<figure>") == 18
    captions = re.findall("<figcaption>(caption .*?)</figcaption>", html)
    assert sorted(captions) == sorted(phase.captions)


def test_soft_labels_are_shown_in_their_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.tensor([[2.0, 0.5, -4.0], [0.0, 1.0, 3.0], [-0.5, 0.25, 4.0]])
    picture = np.asarray(sets.heat_map(matrix, 4.0), dtype=int)
    assert picture[1, 0].tolist() == [255, 255, 255]
    assert picture[2, 2].tolist() == sets._POSITIVE.tolist() and picture[0, 2].tolist() == sets._NEGATIVE.tolist()
    assert picture[0, 0].tolist() == pytest.approx([(255 + c) / 2 for c in sets._POSITIVE.tolist()], abs=1)
    one = distilled(phases=1)
    pairs = SyntheticPairs(one[0].images, one[0].texts, FullSimilarity(matrix), one[0].lr)
    shown = sets.shown_set(
        "ours", replace(one, phases=(replace(one.phases[0], pairs=pairs),)), None, "", sets.Limits.of([one])
    )["labels"]
    assert (shown["most"], shown["diagonal"], shown["others"]) == ("4.0", "2.33", "-0.12")
    # Image 1 fits text 2, 0 fits 1, 2 fits 1: those below 0 fit nothing.
    assert [(entry["value"], entry["image"]["number"]) for entry in shown["strongest"]] == [
        *(("3.00", 1), ("0.50", 0), ("0.25", 2)),
    ]
    assert [entry["caption"][:11] for entry in shown["strongest"]] == ["caption 0.2", "caption 0.1", "caption 0.1"]


def test_the_headline_tells_what_the_best_set_reaches() -> None:
    found = page.headline(page.by_recall(rows()))
    ours, full = (mean(student["mean"] for student in row.scores.students) for row in rows()[1:])
    assert found == (
        f"ours: 1,234 synthetic pairs teach a mean recall of {ours:.1f} %, {100 * ours / full:.0f} % of the "
        f"{full:.1f} % that all 24,000 real pairs teach."
    )
    real = replace(rows()[0], distilled=replace(distilled(), provenance={"method": "random"}), pairs=1234)
    assert str(page.headline([rows()[1], real])).endswith(f"; random <pairs> teach {real.scores.mean():.1f} %.")
    assert page.headline([real, rows()[2]]) is None


def test_facts_are_told_once_where_they_are_those_of_all() -> None:
    found = dict(page.facts(rows()))
    assert found["split"] == "val"
    assert found["students"] == "3 (random <pairs>, ours); 1 (all)"
    assert found["protocol"] == "per-phase (random <pairs>, ours); as trained (all)"


@pytest.mark.slow
def test_real_pictures_are_small(tmp_path: Path) -> None:
    large = torch.randint(0, 256, (3, 100, 100), dtype=torch.uint8)
    for most, size in ((None, 100), (48, 48), (200, 100)):
        content = base64.b64decode(sets.picture_of(large, most).split(",")[1])
        assert Image.open(io.BytesIO(content)).size == (size, size)


@pytest.mark.slow
def test_a_page_does_without_real_pictures_that_are_not_there(
    tmp_path: Path, real: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "SHOWN", 0)
    made = far_from(real)
    data = {**made.settings["data"], "root": str(tmp_path / "gone<b>")}
    gone = replace(made, settings={**made.settings, "data": data})
    html = page_of(tmp_path, [Row("ours", scores(20.0), 5, gone)])
    message = (
        f"Without the nearest real pictures: {tmp_path}/gone<b>: expected the data that the experts were trained on"
    )
    assert escape(message, quote=False) in html and len(images_of(html)) == 5
    write_report(
        tmp_path / "page.html",
        "A title",
        [Row("ours", scores(20.0), 5, gone)],
        root=Path(made.settings["data"]["root"]),
    )
    assert len(images_of((tmp_path / "page.html").read_text("utf-8"))) == 10


@pytest.mark.slow
def test_the_pictures_are_the_images(tmp_path: Path) -> None:
    found = iter(images_of(page_of(tmp_path, [rows()[1]])))
    for number, count in ((0, 3), (1, 4)):
        for i in range(count):
            picture = next(found).convert("RGB")
            assert picture.size == (8, 8)
            pixels = picture.tobytes()
            assert abs(sum(pixels) / len(pixels) - (60 * i + 20 * number)) <= 2


def test_the_pictures_stand_upright_in_their_colors() -> None:
    corners = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 240]])
    pixels = corners.view(2, 2, 3).permute(2, 0, 1).repeat_interleave(32, 1).repeat_interleave(32, 2).byte()
    picture = Image.open(io.BytesIO(base64.b64decode(sets.picture_of(pixels).split(",")[1]))).convert("RGB")
    for (row, column), color in zip(((0, 0), (0, 1), (1, 0), (1, 1)), corners.tolist(), strict=True):
        found = picture.getpixel((16 + 32 * column, 16 + 32 * row))
        assert isinstance(found, tuple) and max(abs(a - b) for a, b in zip(found, color, strict=True)) <= 12


def test_curves_are_running_means() -> None:
    values = torch.rand(61, generator=torch.Generator().manual_seed(0))
    window = 61 // 20
    expected = [mean(values[max(0, i + 1 - window) : i + 1].double().tolist()) for i in range(61)]
    assert list(sets._smoothed(values)) == pytest.approx(expected)
    assert list(sets._smoothed(values[:7])) == pytest.approx(values[:7].tolist())


def test_figures_show_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def kept(figure: Any) -> str:
        drawn.append(figure)
        return ""

    monkeypatch.setattr(page, "svg", kept)
    page._recall_figure(rows())
    (axes,) = drawn[0].axes
    means = [mean(student["mean"] for student in row.scores.students) for row in rows()]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(means)
    made = distilled()
    monkeypatch.setattr(sets, "svg", kept)
    sets._curves(made, sets.Limits.of([made, distilled(history=False)]))
    loss, eta = drawn[1].axes
    histories = [phase.history for phase in made.phases]
    lines = [(history, group) for history in histories for group in range(2)]
    assert len(loss.lines) == len(eta.lines) == 4
    for line, (history, group) in zip(eta.lines, lines, strict=True):
        assert list(line.get_ydata()) == pytest.approx(history["lr"][:, group].tolist())
    for line, (history, group) in zip(loss.lines, lines, strict=True):
        assert list(line.get_ydata()) == pytest.approx(list(sets._smoothed(history["loss"][:, group])))


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page_of(tmp_path, rows()) == page_of(tmp_path, rows())
    assert page_of(tmp_path, rows()) == page_of(tmp_path, rows()[::-1])  # the best is first
    assert page_of(tmp_path, rows()) != page_of(tmp_path, rows()[:2])


@pytest.mark.slow
def test_a_scored_set_is_read(tmp_path: Path) -> None:
    made = distilled()
    made.save(tmp_path / "ours")
    write_scores(tmp_path / "ours" / "scores.json", scores(20.0))
    row = read_row(tmp_path / "ours")
    assert (row.name, row.pairs, row.scores) == ("ours", 7, scores(20.0))
    assert page_of(tmp_path, [row]) == page_of(tmp_path, [replace(row, distilled=made)])


def test_a_set_without_scores_is_refused(tmp_path: Path) -> None:
    distilled().save(tmp_path / "ours")
    with pytest.raises(InputError, match=r"ours: expected scores\.json, found none; run `ptmst evaluate .*ours`"):
        read_row(tmp_path / "ours")


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"page\.html: cannot be written"):
        write_report(tmp_path / "file" / "page.html", "A title", rows())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_page_says_whose_pictures_are_on_it(tmp_path: Path) -> None:
    credits = {"license": "CC-BY-4.0 & <MIT>", "credits": ["Drawings, by A & B, CC-BY-4.0", "Names, by <C>, MIT"]}
    shown = [
        row if row.distilled is None else replace(row, distilled=_credited(row.distilled, credits)) for row in rows()
    ]
    write_report(tmp_path / "page.html", "a title", shown)
    text = (tmp_path / "page.html").read_text()
    for line in (*credits["credits"], f"License of the data: {credits['license']}"):
        assert text.count(f"<li>{escape(str(line))}</li>") == 1
    write_report(tmp_path / "none.html", "a title", rows())
    assert "License of the data" not in (tmp_path / "none.html").read_text()


def _credited(made: DistilledSet, credits: dict[str, Any]) -> DistilledSet:
    return replace(made, settings={**made.settings, "credits": credits})
