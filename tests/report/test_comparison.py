"""Sets and runs side by side: intervals, settings that differ, what became of the same pairs, rows of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from reported import distilled, rows, scores
from scipy.stats import ttest_1samp, ttest_rel

from ptmst import InputError, TrajectoryStore, distill
from ptmst.data.sampling import random_subset
from ptmst.evaluation.nearest import RealPictures
from ptmst.evaluation.scores import Scores, write_scores
from ptmst.report.comparison import compared, differing
from ptmst.report.page import by_recall, headline, write_report
from ptmst.report.sets import Limits, nearest_pictures, shown_set
from ptmst.report.tables import Row, fraction_of_full, read_rows
from ptmst.schema import to_json
from ptmst.synthetic.distilled_set import DistilledSet
from tiny import DISTILL, tiny_store


def scored(*means: float, seed: int = 7) -> Scores:
    plain = scores(10.0)
    return Scores(
        tuple({**plain.students[0], "mean": value} for value in means),
        {**plain.provenance, "config": {**plain.provenance["config"], "seed": seed}},
    )


def test_a_difference_has_the_interval_of_paired_students() -> None:
    ours, theirs = (30.0, 34.0, 33.0), (20.0, 27.0, 21.0)
    made = distilled()
    both = [Row("ours", scored(*ours), 7, made), Row("theirs", scored(*theirs), 7, made)]
    shown = [shown_set(row.name, made, None, "", Limits.of([made])) for row in both]
    found = compared(both, shown, [None, None])
    assert found is not None
    interval = ttest_rel(theirs, ours).confidence_interval(0.95)
    expected = f"-9.7 [{interval.low:+.1f}, {interval.high:+.1f}]"
    assert [row["difference"] for row in found["recalls"]] == ["", expected]
    for row, values in zip(found["recalls"], (ours, theirs), strict=True):
        one = ttest_1samp(values, 0).confidence_interval(0.95)
        assert row["mean"] == f"{mean(values):.1f} [{one.low:.1f}, {one.high:.1f}]"
    assert found["settings"] == [] and found["pairs"] == []
    for other in (scored(*theirs, seed=8), scored(*theirs[:2])):
        alone = compared([both[0], Row("theirs", other, 7, made)], shown, [None, None])
        assert alone is not None and [row["difference"] for row in alone["recalls"]] == ["", ""]


def test_one_set_is_compared_with_none() -> None:
    selected = replace(distilled(), provenance={"method": "random"})
    one = [rows()[1], Row("random", scores(10.0), 7, selected)]
    shown = [shown_set(row.name, row.distilled, None, "", Limits.of([])) for row in one if row.distilled is not None]
    assert compared(one, shown, [None, None]) is None


def test_settings_that_differ_are_told() -> None:
    def made(store: str = "a", evaluated: int = 7, **changes: object) -> Row:
        provenance = {"config": {**to_json(DISTILL), **changes}, "store_sha256": 20 * store}
        return Row("one", scored(1.0, 2.0, seed=evaluated), 7, replace(distilled(), provenance=provenance))

    older = {name: value for name, value in to_json(DISTILL).items() if name != "rate_decay"}
    found = differing(
        [
            made(),
            made(steps=5, alpha=0.5),
            replace(made(), distilled=replace(distilled(), provenance={"config": older})),
        ]
    )
    assert found == [
        {"name": "steps", "values": ["4", "5", "4"]},
        {"name": "alpha", "values": ["1.0", "0.5", "1.0"]},
        {"name": "rate_decay", "values": ["none", "none", "–"]},
        {"name": "experts", "values": ["aaaaaaaaaaaa", "aaaaaaaaaaaa", "–"]},
    ]
    assert differing([made(), made(store="b", evaluated=8)]) == [
        {"name": "experts", "values": ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]},
        {"name": "evaluate.seeds", "values": ["7", "8"]},
    ]
    phases = [{"pairs": 3, "endpoint": 2, "start": [0, 1]}]
    assert differing([made(), made(phases=phases)]) == [
        {"name": "phases", "values": ["8:2:0-2 10:3:1-3", "3:2:0-1"]},
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, False)


@pytest.mark.slow
def test_the_same_pairs_are_found_in_each_set(store: TrajectoryStore, tmp_path: Path) -> None:
    first, second = (
        distill(replace(DISTILL, phases=phases, steps=1), store) for phases in (DISTILL.phases, DISTILL.phases[:1])
    )
    both = [Row("first", scored(30.0, 31.0), 18, first), Row("second", scored(20.0, 21.0), 8, second)]
    real = RealPictures()
    looked = [nearest_pictures(made, real) for made in (first, second)]
    shown = [
        shown_set(row.name, made, *found, Limits.of([first, second]))
        for row, made, found in zip(both, (first, second), looked, strict=True)
    ]
    found = compared(both, shown, [nearest for nearest, _ in looked])
    assert found is not None
    pairs = store.recipe.pairs("train")
    begun = [random_subset(pairs, DISTILL.seed, count).tolist() for count in (18, 8)]
    shared = {text for text in begun[0] if text in begun[1]}
    assert len(found["pairs"]) == min(6, len(shared)) > 0
    for pair in found["pairs"]:
        ours, theirs = pair["became"]
        place = 8 * ours["phase"] + ours["number"], theirs["number"]
        assert begun[0][place[0]] == begun[1][place[1]]
        assert pair["before"]["caption"] == pairs.captions[begun[0][place[0]]]
        assert ours["picture"] == shown[0]["pairs"][place[0]]["picture"]
        assert theirs["picture"] == shown[1]["pairs"][place[1]]["picture"]
    write_report(tmp_path / "page.html", "A title", both)
    html = (tmp_path / "page.html").read_text()
    assert "<h2>Side by side</h2>" in html and "What became of the same pairs" in html and "8:2:0-2 10:3:1-3" in html


def run_folder(folder: Path, made: DistilledSet, *names: str, full: float = 60.0) -> Path:
    """What `ptmst run` or `ptmst demo` leaves, as far as a report reads it."""
    folder.mkdir(parents=True)
    (folder / ("whole.json" if names == ("set",) else "demo.json")).write_text("{}")
    plain = scores(10.0)
    of_set = {"method": "random", "seed": 0}
    write_scores(folder / "scores/random.json", replace(plain, provenance={**plain.provenance, "set": of_set}))
    for number, name in enumerate(names):
        made.save(folder / name)
        write_scores(folder / f"scores/{name}.json", scores(20.0 + number))
    provenance = {"split": "val", "ties": plain.ties, "experts": [0], "epochs": 3, "pairs": 48}
    write_scores(folder / "scores/all.json", replace(scores(full, 1), provenance=provenance))
    return folder


def test_runs_are_reported_with_all_their_rows(tmp_path: Path) -> None:
    made = distilled()
    one = run_folder(tmp_path / "one", made, "set", full=60.0)
    two = run_folder(tmp_path / "two", made, "lors", "ptm-st", full=50.0)
    found = read_rows([one, two])
    assert [row.name for row in found] == [
        *("all real pairs of one", "random real pairs of one", "one"),
        *("all real pairs of two", "two: lors", "two: ptm-st", "random real pairs of two"),
    ]
    assert [row.name for row in found if row.is_selected] == ["random real pairs of one", "random real pairs of two"]
    by_name = {row.name: row for row in found}
    # Each is held to what all real pairs of its own run teach.
    for name, full in (("one", "all real pairs of one"), ("two: lors", "all real pairs of two")):
        share = 100 * by_name[name].scores.mean() / by_name[full].scores.mean()
        assert fraction_of_full(by_name[name], found) == pytest.approx(share)
    # The headline is of one run: its own real pairs, all and random ones.
    said = str(headline(by_recall(found)))
    assert said.startswith("two: ptm-st: ") and "that all 48 real pairs teach" in said
    of_all = by_name["all real pairs of two"].scores.mean()
    assert f"{100 * by_name['two: ptm-st'].scores.mean() / of_all:.0f} % of the {of_all:.1f} %" in said
    write_report(tmp_path / "page.html", "Two runs", found, nearest=False)
    html = (tmp_path / "page.html").read_text()
    assert html.count("<h2>one</h2>") == html.count("<h2>two: lors</h2>") == 1 and "<h2>Side by side</h2>" in html


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / where / "mine", distilled(), "set") for where in ("a", "b")]
    names = [row.name for row in read_rows(folders)]
    assert len({*names}) == 6 and f"mine ({folders[0]})" in names


def test_a_run_that_is_under_way_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "mine", distilled(), "set")
    (folder / "scores" / "all.json").unlink()
    message = f"^{folder}: expected a run with its scores, found none yet; run it to its end first$"
    with pytest.raises(InputError, match=message):
        read_rows([folder])
