"""A page that shows a run as it goes: it lies in the folder of the run and reloads itself, without a server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ptmst.distillation.watching import Moment, Watcher
from ptmst.errors import InputError
from ptmst.report.figures import COLORS, figure, svg
from ptmst.report.sets import picture_of, spread
from ptmst.report.templates import write_page
from ptmst.support import files, progress
from ptmst.support.clock import in_words, repeatedly
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.store import TrajectoryStore

PAGE = "live.html"
"""Of a distillation, in the folder of its set."""
COURSE = "course.json"
_KIND, _VERSION = "course", 1
_POINTS = 200
"""Of a curve, for each phase; each is a mean over the steps since the one before."""
_PAIRS, _SNAPSHOTS = 6, 8
"""Pairs of a phase whose pictures are shown, at evenly spaced outer steps from the start to the end."""
_THUMBNAIL = 96
"""Most pixels of a side."""
_SAVE_EVERY_S, _RELOAD_S, _RARELY_S = 5.0, 5, 20.0
_SHARE = 0.03
"""Of the time that is spent on a page, as long as it comes every `_RARELY_S`."""
_LOG = logging.getLogger(__name__)


class Recorder:
    """A watcher that keeps in a file what a page shows of a distillation; one that is resumed goes on in it.

    Of one that was killed the curves lack its last seconds.
    """

    def __init__(self, path: Path, name: str, store: TrajectoryStore) -> None:
        self._path, self._store, self._saved_at = path, store, -_SAVE_EVERY_S
        self._found: dict[str, Any] = {"name": name, "points": [], "recalls": [], "snapshots": []}
        self._since: list[Moment] = []
        if path.exists():
            try:
                self._found = _read(path)
            except InputError:  # of another release, or damaged: curves begin here
                pass

    def __call__(self, moment: Moment) -> None:
        if not moment.loss:
            self._drop_what_comes_after(moment.phase, moment.step)
        else:
            self._since.append(moment)
        last = moment.step == moment.steps
        if self._since and (last or moment.step % -(-moment.steps // _POINTS) == 0):
            self._found["points"].append(_point(self._since))
            self._since = []
        shown = last or not moment.loss or moment.recall is not None
        if moment.recall is not None:
            self._found["recalls"].append({"phase": moment.phase, "step": moment.step, "recall": moment.recall})
        marks = {round(moment.steps * i / (_SNAPSHOTS - 1)) for i in range(_SNAPSHOTS)}
        if moment.pairs.in_pixels and moment.step in marks and not self._is_seen(moment):
            self._found["snapshots"].append(self._snapshot(moment))
            shown = True
        if shown or time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self._saved_at = time.monotonic()
            record = {"format": f"ptmst-{_KIND}", "version": _VERSION, **self._found}
            _try_writing(lambda: files.write_json(self._path, record))

    def _drop_what_comes_after(self, phase: int, step: int) -> None:
        """It will come again, from the checkpoint that a run is resumed from."""
        self._since = []
        for name in ("points", "recalls", "snapshots"):
            kept = [one for one in self._found[name] if (one["phase"], one["step"]) <= (phase, step)]
            self._found[name] = kept

    def _is_seen(self, moment: Moment) -> bool:
        return any((one["phase"], one["step"]) == (moment.phase, moment.step) for one in self._found["snapshots"])

    def _snapshot(self, moment: Moment) -> dict[str, Any]:
        pairs = moment.pairs
        rows = torch.tensor([pair for _, pair in spread([len(pairs)], _PAIRS)], device=pairs.images.device)
        some = SyntheticPairs(
            pairs.images[rows].cpu(), pairs.texts[rows].cpu(), FullSimilarity.identity(len(rows)), pairs.lr.cpu()
        )
        pixels = DistilledSet((DistilledPhase(some, some.lr, ()),), {}, self._store.settings).pixels(0)
        return {"phase": moment.phase, "step": moment.step, "pictures": [picture_of(one, _THUMBNAIL) for one in pixels]}


def _point(moments: Sequence[Moment]) -> dict[str, Any]:
    newest, names = moments[-1], ("loss", "lr", "gradient")
    means = {
        what: {one: mean(getattr(m, what)[one] for m in moments) for one in getattr(newest, what)} for what in names
    }
    return {"phase": newest.phase, "step": newest.step, **means}


def _try_writing(write: Callable[[], object]) -> None:
    """What only shows a run does not end it, as on a full disk."""
    try:
        write()
    except InputError as error:
        _LOG.warning("%s; the run goes on without", error)


def _read(path: Path) -> dict[str, Any]:
    return files.read_json(path, _KIND, _VERSION)


class LivePage:
    """What a run has come to, as a page: what is under way, and the courses of its distillations."""

    def __init__(self, out: Path, title: str, command: str, courses: Sequence[Path]) -> None:
        self._out, self._title, self._command, self._courses = out, title, command, courses
        self._next = 0.0

    def write(self, log: progress.Log, ended: str | None = None) -> None:
        """Write it, unless that was done a moment ago; `ended` says how the run ended, after which it stays as it is.

        Where it cannot be written, that is a warning.
        """
        began = time.monotonic()
        if ended is None and began < self._next:
            return
        values = {
            "reload": None if ended else _RELOAD_S,
            "ended": ended,
            "now": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            "bars": [] if ended else [_shown_bar(label, bar) for label, bar in dict(log.bars).items()],
            "lines": [*log.lines],
            "courses": [_shown_course(course) for course in self._read()],
        }
        _try_writing(lambda: write_page(self._out, "live.html.jinja", self._title, self._command, **values))
        ready = time.monotonic()
        self._next = ready + min((ready - began) / _SHARE, _RARELY_S)

    def _read(self) -> Iterator[dict[str, Any]]:
        for path in self._courses:
            try:
                yield _read(path)
            except InputError:  # not there yet, or of another release
                continue


@contextmanager
def shown_live(page: LivePage, continues: str) -> Iterator[Callable[[str | None], None]]:
    """Keep a page as the block comes along; `continues` is what is said where it is stopped.

    Yields what ends that before the block does, with the last word of the page; without one it is left as it is, for
    another to take its place.
    """
    with progress.logged() as log, ExitStack() as kept:
        page.write(log)
        kept.enter_context(repeatedly(lambda: page.write(log), 1.0))

        def end(word: str | None) -> None:
            kept.close()
            if word is not None:
                page.write(log, word)

        try:
            yield end
        except BaseException as error:
            end(f"Stopped: {progress.printable(str(error))}" if str(error) else f"Stopped: {continues}.")
            raise


@contextmanager
def watched(out: Path, command: str, store: TrajectoryStore, continues: str) -> Iterator[Watcher]:
    """A watcher of a distillation into `out`, which shows it on a page there from its first moment to its end."""
    recorder = Recorder(out / COURSE, out.name, store)
    page = LivePage(out / PAGE, f"Distillation of {out.name}", command, [out / COURSE])
    with ExitStack() as shown:

        def watch(moment: Moment) -> None:
            recorder(moment)
            if not ends:
                ends.append(shown.enter_context(shown_live(page, continues)))
                progress.note(f"{out / PAGE} shows the run as it goes")

        ends = list[Callable[[str | None], None]]()
        yield watch
        for end in ends:
            end("Done.")


def _shown_bar(label: str, bar: progress.Underway) -> dict[str, Any]:
    told = [f"{bar.done:,} of {bar.total:,}"]
    if bar.per_second is not None:
        rate = f"{bar.per_second:.1f} a second" if bar.per_second >= 1 else f"{1 / bar.per_second:.1f} s each"
        told += [rate, f"{in_words(bar.left or 0.0)} left"]
    told += [progress.printable(bar.doing)] if bar.doing else []
    return {"label": progress.printable(label), "done": bar.done, "total": bar.total, "told": ", ".join(told)}


def _shown_course(course: Mapping[str, Any]) -> dict[str, Any]:
    snapshots, phases = course["snapshots"], sorted({one["phase"] for one in course["snapshots"]})
    strips = []
    for phase in phases:
        mine = [one for one in snapshots if one["phase"] == phase]
        strips.append(
            {
                "phase": phase + 1,
                "steps": [one["step"] for one in mine],
                "rows": [list(row) for row in zip(*(one["pictures"] for one in mine), strict=True)],
            }
        )
    points = course["points"]
    newest = points[-1] if points else None
    return {
        "name": progress.printable(course["name"]),
        "curves": _curves(course) if len(points) > 1 else None,
        "strips": strips,
        "now": newest and _now(newest, course["recalls"]),
    }


def _now(point: Mapping[str, Any], recalls: Sequence[Mapping[str, Any]]) -> str:
    def listed(what: str) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in point[what].items())

    said = f"Phase {point['phase'] + 1}, outer step {point['step']:,}: matching loss {listed('loss')}; η {listed('lr')}"
    return f"{said}; recall of a quick student {recalls[-1]['recall']:.1f} %" if recalls else said


def _curves(course: Mapping[str, Any]) -> str:
    """Loss and η by group, the gradient's norm by leaf, and recall where it was looked at, against the outer step."""
    points, recalls = course["points"], course["recalls"]
    names = {"loss": "matching loss", "lr": "student learning rate η", "gradient": "norm of the gradient"}
    phases = sorted({one["phase"] for one in points})
    drawn = figure(4 * (3 + bool(recalls)), 2.9)
    axes = list(drawn.subplots(1, 3 + bool(recalls)))
    for one, (what, title) in zip(axes, names.items(), strict=False):
        for number, phase in enumerate(phases):
            mine = [point for point in points if point["phase"] == phase]
            for place, part in enumerate(mine[0][what]):
                label = f"phase {phase + 1}, {part}" if len(phases) > 1 else part
                color = COLORS[(number if what != "gradient" else place) % len(COLORS)]
                style = ("-", "--", ":")[(place if what != "gradient" else number) % 3]
                values = [point[what][part] for point in mine]
                one.plot([point["step"] for point in mine], values, style, color=color, label=label, linewidth=1.2)
        one.set(xlabel="outer step", ylabel=title)
        one.legend(frameon=False, fontsize=8)
    axes[2].set_yscale("log")
    for number, phase in enumerate(phases if recalls else ()):
        mine = [look for look in recalls if look["phase"] == phase]
        axes[3].plot([look["step"] for look in mine], [look["recall"] for look in mine], "o-", color=COLORS[number % 5])
        axes[3].set(xlabel="outer step", ylabel="recall of a quick student, percent")
    return svg(drawn)
