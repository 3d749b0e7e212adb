"""The main job in one command, on data that come along: `ptmst demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ptmst.config import DataConfig, Experiment
from ptmst.errors import InputError
from ptmst.presets import applied, experiment
from ptmst.report.tables import Row
from ptmst.students.packages import weights_file
from ptmst.studies import whole
from ptmst.studies.whole import PAGE, Job, Method
from ptmst.support import folders
from ptmst.support.progress import result

FOLDER = folders.Kind("a demo", ("demo.json",))
_VERSION = 1
METHODS = {"lors": "LoRS", "ptm-st": "PTM-ST", "st-adjoint": "ST, damped adjoint"}
"""Methods that are shown, by preset."""


def preset_of(data: str, quick: bool) -> str:
    """The preset of a demo: rendered pictures train a small tower of their own, all others have a pretrained one."""
    return f"{'scenes' if data in ('scenes', 'digits') else 'demo'}{'-quick' * quick}"


def settings_of(data: str, quick: bool) -> Experiment:
    """Those of the preset; what it has tuned for its methods on its own data alone."""
    settings = experiment(preset_of(data, quick))
    return settings if data == settings.data.name else replace(settings, tuned={})


def run_demo(source: DataConfig, out: Path, quick: bool, command: str) -> list[Row]:
    """Run the demo on a data set in `out`, or continue it; returns the rows of its table, of which it writes a page.

    A set that `ptmst data` writes is written to `out`, unless `source` has a root. Raises InputError for data without a
    val or test split, for a tower that is not installed, and where `out` holds another demo, or cannot be written.
    """
    settings = settings_of(source.name, quick)
    _refuse_missing_tower(settings)
    methods = {name: Method(label, applied(name, settings)) for name, label in METHODS.items()}

    def title(rows: list[Row]) -> str:
        return f"ptmst demo: {rows[1].pairs} pairs distilled from {rows[-1].pairs:,} ({source.name})"

    done = whole.do(Job(FOLDER, _VERSION, source, settings, methods, out), command, title)
    result(f"{done.minutes:.1f} min. Everything is in {out}; open {out / PAGE} in a browser.")
    return done.rows


def _refuse_missing_tower(settings: Experiment) -> None:
    weights = settings.teach.encoder.image_weights
    try:
        if weights is not None:
            weights_file(weights)
    except InputError as error:
        raise InputError(f"{error}, or take --data scenes, which needs no weights") from error
