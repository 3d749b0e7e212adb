"""The page that shows a run as it goes, and the file that it is made from."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from reported import course, moment, recorder

from ptmst import InputError, Moment, TrajectoryStore, distill
from ptmst.report import live
from ptmst.report.live import LivePage, Recorder, shown_live, watched
from ptmst.support import files, progress
from tiny import DISTILL, tiny_store


def content(path: Path) -> dict[str, Any]:
    return files.read_json(path, "course", 1)


def test_a_course_has_means_looks_and_pictures(tmp_path: Path) -> None:
    record, steps = recorder(tmp_path / "course.json"), 500
    record(moment(0, steps, begun=False))
    for step in range(1, steps + 1):
        record(moment(step, steps, recall=float(step) if step % 100 == 0 else None))
    found = content(tmp_path / "course.json")
    # Two hundred points at most: of three steps each, and of what is left.
    assert [one["step"] for one in found["points"]] == [*range(3, 500, 3), 500]
    assert found["points"][1]["loss"]["image"] == pytest.approx(mean([1 / 5, 1 / 6, 1 / 7]))
    assert found["points"][-1]["lr"]["image"] == pytest.approx(mean([499.1, 500.1]))
    assert [(one["step"], one["recall"]) for one in found["recalls"]] == [(s, float(s)) for s in range(100, 501, 100)]
    assert [one["step"] for one in found["snapshots"]] == [0, 71, 143, 214, 286, 357, 429, 500]
    assert all(len({*one["pictures"]}) == 1 and len(one["pictures"]) == 6 for one in found["snapshots"])
    assert len({one["pictures"][0] for one in found["snapshots"]}) == 8


def test_a_resumed_run_goes_on_in_its_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came after the checkpoint comes again, once."""
    monkeypatch.setattr(live, "_SAVE_EVERY_S", 0.0)
    once, twice = tmp_path / "once.json", tmp_path / "twice.json"
    whole = recorder(once)
    first = recorder(twice)
    for phase in (0, 1):
        for step in range(21):
            now = moment(step, 20, phase, recall=float(step) if step % 10 == 0 and step else None, begun=step > 0)
            whole(now)
            if (phase, step) <= (1, 15):
                first(now)
    second = recorder(twice)
    second(moment(10, 20, 1, begun=False))
    for step in range(11, 21):
        second(moment(step, 20, 1, recall=20.0 if step == 20 else None))
    assert content(twice) == content(once)


def test_a_course_that_cannot_be_read_begins_again(tmp_path: Path) -> None:
    (tmp_path / "course.json").write_text("{")
    recorder(tmp_path / "course.json")(moment(0, 2, begun=False))
    assert len(content(tmp_path / "course.json")["snapshots"]) == 1


def page(tmp_path: Path, *courses: Path) -> LivePage:
    return LivePage(tmp_path / "live.html", "A run <of mine>", "ptmst run", courses)


def test_the_page_shows_what_is_under_way_and_how_it_ended(tmp_path: Path) -> None:
    seen, path = dict[str, str](), course(tmp_path / "course.json")
    with shown_live(page(tmp_path, path, tmp_path / "not there yet.json"), "the same command continues") as end:
        seen["first"] = (tmp_path / "live.html").read_text()
        progress.note("2/4 teachers: <experts>")
        with progress.bar("experts", 10, 2) as bar:
            bar.advance("expert 3", 4)
            log = progress._log
            assert log is not None
            page(tmp_path, path).write(log)
            seen["second"] = (tmp_path / "live.html").read_text()
        assert log.bars == {}
        end("Done.")
    seen["last"] = (tmp_path / "live.html").read_text()
    for name in ("first", "second"):
        assert '<meta http-equiv="refresh" content="5">' in seen[name] and "Under way" in seen[name]
    assert 'refresh"' not in seen["last"] and "Done." in seen["last"]
    assert '<progress value="6" max="10">' in seen["second"] and "6 of 10" in seen["second"]
    assert re.search(r"6 of 10, [\d.]+ a second, 0 s left, expert 3", seen["second"])
    assert "2/4 teachers: &lt;experts&gt;" in seen["last"] and "A run &lt;of mine&gt;" in seen["last"]
    for shown in seen.values():
        assert shown.count("<svg") == 1 and shown.count("data:image/webp") == 6 * 5
        assert "outer step 4: matching loss image 0.2, text 6; η image 4.1, text 0.2" in shown
        assert "recall of a quick student 12.5 %" in shown
        assert "<script" not in shown and not re.search(r"""(src|href)=["'](?!data:|#)""", shown)


def test_a_page_gives_way_to_another(tmp_path: Path) -> None:
    """Of a run that ended well: a reader's browser asks for it until the results are there."""
    with shown_live(page(tmp_path), "the same command continues") as end:
        end(None)
        assert 'content="5"' in (tmp_path / "live.html").read_text()
        (tmp_path / "live.html").write_text("results")
    assert (tmp_path / "live.html").read_text() == "results"


def test_a_page_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "live.html").mkdir()
    (tmp_path / "course.json").mkdir()
    record = recorder(tmp_path / "course.json")
    with shown_live(page(tmp_path), "the same command continues") as end:
        record(moment(0, 2, begun=False))
        end("Done.")
    with pytest.raises(KeyboardInterrupt), shown_live(page(tmp_path), "the same command continues"):
        raise KeyboardInterrupt
    assert len(caplog.messages) >= 3 and all(one.endswith("; the run goes on without") for one in caplog.messages)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Stopped: the same command continues."),
        (InputError("data: expected <b>"), "Stopped: data: expected &lt;b&gt;"),
    ],
)
def test_the_page_says_that_a_run_was_stopped(tmp_path: Path, error: BaseException, said: str) -> None:
    with pytest.raises(type(error)), shown_live(page(tmp_path), "the same command continues"):
        raise error
    shown = (tmp_path / "live.html").read_text()
    assert said in shown and "refresh" not in shown
    assert threading.active_count() == 1 or all("repeat" not in one.name for one in threading.enumerate())


@pytest.mark.slow
def test_a_run_that_is_resumed_in_its_second_phase_keeps_its_course(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SAVE_EVERY_S", 0.0)
    store = tiny_store(tmp_path_factory, False)
    config = replace(DISTILL, track_recall=2, checkpoint_minutes=0.0)
    distill(replace(config, out=tmp_path / "whole"), store, watch=Recorder(tmp_path / "whole.json", "one", store))
    record = Recorder(tmp_path / "course.json", "one", store)

    def watch(now: Moment) -> None:
        record(now)
        if (now.phase, now.step) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(replace(config, out=tmp_path / "set"), store, watch=watch)
    again = Recorder(tmp_path / "course.json", "one", store)
    distill(replace(config, out=tmp_path / "set"), store, resume=True, watch=again)
    assert content(tmp_path / "course.json") == content(tmp_path / "whole.json")


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_a_distillation_is_shown_in_the_folder_of_its_set(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, frozen: bool
) -> None:
    store: TrajectoryStore = tiny_store(tmp_path_factory, frozen)
    out = tmp_path / "set"
    config = replace(DISTILL, out=out, track_recall=2, image_leaves="features" if frozen else "pixels")
    with watched(out, "ptmst distill", store, "--resume continues") as watch:
        assert not out.exists()
        distill(config, store, watch=watch)
    shown = (out / "live.html").read_text()
    assert "Done." in shown and "Distillation of set" in shown
    # Two phases of 8 and 10 pairs, six of each, at the start and after each of four steps.
    assert shown.count("data:image/webp") == (0 if frozen else 2 * 6 * 5)
    before = (out / "live.html").read_bytes()
    with watched(out, "ptmst distill", store, "--resume continues") as watch:
        distill(config, store, resume=True, watch=watch)  # there already
    assert (out / "live.html").read_bytes() == before
