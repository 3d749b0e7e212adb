"""Data of one's own in one command, `ptmst run`: what is planned, what it will take, and where everything lies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ptmst import schema
from ptmst.config import DataConfig, DistillConfig, Experiment, OpenPhases, RunConfig
from ptmst.data import load_split
from ptmst.distillation.choosing import Choice
from ptmst.distillation.watching import tracker
from ptmst.errors import InputError
from ptmst.presets import experiment
from ptmst.report.tables import Row
from ptmst.students.image_towers import image_tower, prepared
from ptmst.students.packages import installed
from ptmst.studies import whole
from ptmst.studies.estimate import estimate, shown
from ptmst.studies.own_data import made_ready
from ptmst.studies.whole import PAGE, Job, Method
from ptmst.support import folders
from ptmst.support.progress import note, result

FOLDER = folders.Kind("a run", ("whole.json",))
_VERSION = 1
_SET = "set"
_LABEL = "distilled"
_BATCHES = 8
"""Batches of an epoch of experts that small data are cut into at least."""
_STUDENTS = 3
"""That are kept with their towers."""
_SPARE = 1.1
"""Free disk that is asked for, of what is expected to be written."""


def run(config: RunConfig, command: str) -> list[Row]:
    """Everything from data to a page in `config.out`, or what is left of it; returns the rows of its table.

    Says before it starts what it will do and what that takes. Raises InputError for data that cannot be used, too few
    images, too little disk, and where the folder holds another run.
    """
    schema.check(config)
    folders.refuse_taken(config.out, FOLDER)
    if config.track is not None:
        tracker(DistillConfig(track=config.track, out=config.out))
    with _unless_refused(config.out):
        source = made_ready(config)
        settings = planned(config, source)
        tracked = replace(settings, distill=replace(settings.distill, track=config.track))
        job = Job(FOLDER, _VERSION, source, settings, {_SET: Method(_LABEL, tracked)}, config.out)
        if not job.record.exists():
            _tell(config, settings)

    def title(rows: list[Row]) -> str:
        return f"{rows[1].pairs} pairs distilled from {rows[-1].pairs:,} ({config.data})"

    done = whole.do(job, command, title)
    out, made = config.out, done.rows[1].distilled
    assert made is not None
    choice = schema.from_json(Choice, made.provenance["choice"])
    note(f"{choice.asked} chose the phases {' '.join(map(schema.phase_text, choice.phases))}")
    result(
        f"{done.minutes:.1f} min. {out / PAGE} is the page, {out / _SET} the set, {out / 'store'} the experts. In "
        "Python:\n"
        f'    distilled = ptmst.DistilledSet.load("{out / _SET}")\n'
        "    for batch in distilled.batches(None, torch.Generator().manual_seed(0)):\n"
        "        batch.images, batch.texts, batch.similarity, batch.lr  # images and texts of a step, labels, rates\n"
        f'A student is kept: ptmst query {out / "students" / "best"} FOLDER "a caption" finds pictures in a folder.'
    )
    return done.rows


@contextmanager
def _unless_refused(out: Path) -> Iterator[None]:
    """Leave no folder behind where a run cannot begin."""
    there = out.exists()
    try:
        yield
    except InputError:
        if not there:
            shutil.rmtree(out, ignore_errors=True)
        raise


def planned(config: RunConfig, source: DataConfig) -> Experiment:
    """The settings of a run on data that are there: a preset, with the towers that are asked for or installed, cut to
    the size of the data.

    Raises InputError for data without the splits train, val and test, and for fewer images than pairs.
    """
    settings = experiment(_preset(config))
    encoder = settings.teach.encoder
    if config.image_tower is not None:
        encoder = replace(encoder, image_tower=config.image_tower, image_weights=config.image_weights, head_width=None)
    if config.text_tower is not None:
        encoder = replace(encoder, text_tower=config.text_tower)
    elif not installed(encoder.text_tower) and encoder.text_tower.startswith("pypi:"):
        encoder = replace(encoder, text_tower="hashed")
    size = None if config.image_tower is not None else settings.teach.data.image_size
    data = prepared(replace(source, image_size=size), encoder)
    counts = {split: load_split(data, split) for split in ("train", "val", "test")}
    images = len(counts["train"].image_names)
    if images < config.pairs:
        raise InputError(f"pairs: expected at most the {images:,} training images, found {config.pairs}; lower it")
    batch = min(settings.teach.batch_size, max(2, len(counts["train"]) // _BATCHES))
    teach = replace(
        settings.teach,
        data=replace(source, image_size=size),
        encoder=encoder,
        batch_size=batch,
        seed=config.seed,
        device=config.device,
    )
    distill = replace(
        settings.distill,
        phases=(OpenPhases(config.pairs),),
        steps=config.steps or settings.distill.steps,
        track_recall=settings.distill.track_recall if config.track_recall is None else config.track_recall,
        seed=config.seed,
        device=config.device,
    )
    evaluate = replace(settings.evaluate, seed=config.seed, device=config.device)
    return replace(settings, teach=teach, distill=distill, evaluate=evaluate)


def _preset(config: RunConfig) -> str:
    weights = experiment("run").teach.encoder.image_weights
    return "run" if config.image_tower is not None or installed(str(weights)) else "run-small"


def _tell(config: RunConfig, settings: Experiment) -> None:
    """What is planned, and what it takes here, from a few steps. Raises InputError where the disk is too small."""
    encoder, teach = settings.teach.encoder, settings.teach
    tower = f"the frozen {encoder.image_tower}" if encoder.freeze_tower else "a small image tower that is trained"
    note(
        f"{config.data}: {teach.experts} experts on all real pairs with {tower} and texts by {encoder.text_tower}; "
        f"{config.pairs} synthetic pairs in {settings.distill.steps} outer steps; students on these and on as many "
        "random pairs; a page"
    )
    stages = list(estimate(settings))
    for stage in stages:
        seconds, memory, disk = shown(stage)
        note(f"{stage.name}: about {seconds}, {memory} of memory, {disk} of disk ({stage.what})")
    size = prepared(settings.teach.data, encoder).image_size
    assert size is not None
    students = _STUDENTS * sum(value.nbytes for value in image_tower(encoder, size)[0].state_dict().values())
    written = sum(stage.disk + stage.passing for stage in stages) + students
    need, place = _SPARE * written, _existing(config.out.absolute())
    if (free := shutil.disk_usage(place).free) < need:
        raise InputError(
            f"{config.out}: expected {need / 1e6:,.1f} MB of free disk, found {free / 1e6:,.1f}; choose another --out"
        )


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())
