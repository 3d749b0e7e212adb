"""A store of experts, trained or continued from its settings (docs/method.md §1, §2)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ptmst import schema
from ptmst.config import Coding, TeachConfig
from ptmst.data import load_split
from ptmst.engine.derivatives import why_not_differentiable
from ptmst.errors import InputError
from ptmst.recipe import TOWER, Recipe
from ptmst.students.image_towers import prepared, warn_of_random_weights
from ptmst.students.student import Student
from ptmst.students.text_towers import text_tower
from ptmst.students.warmup import warm_tower
from ptmst.support import devices, folders
from ptmst.teachers.side_by_side import train_experts
from ptmst.trajectories.store import FOLDER, INDEX, TrajectoryStore, base_files

_LOG = logging.getLogger(__name__)


def train_teachers(config: TeachConfig) -> TrajectoryStore:
    """Train the experts that the store at `config.out` still lacks, and return the store.

    A store made with other settings is refused; a killed run continues with the next missing expert. Raises
    InputError for settings or data that cannot be used and Diverged for a non-finite loss.
    """
    schema.check(config)
    config = replace(config, data=prepared(config.data, config.encoder))
    out, device = Path(config.out), devices.pick(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise InputError("precision tf32: expected a CUDA device, found none; use fp32 here")
    folders.refuse_taken(out, but=FOLDER)
    pairs = load_split(config.data, "train")
    if len(pairs) < config.batch_size:
        raise InputError(
            f"{pairs.name} {pairs.split}: expected at least one batch of {config.batch_size} pairs, found "
            f"{len(pairs)}; lower batch_size"
        )
    tower = text_tower(config.encoder)
    recipe = Recipe.of(config.data, config.encoder, pairs, tower, config)

    def opened() -> TrajectoryStore:
        store = TrajectoryStore.open(out)
        _refuse_other_settings(store, recipe, config.coding)
        return store.at(recipe.places)

    # A store that lacks nothing is only read, which many processes may do at once.
    if (out / INDEX).exists() and not _missing(store := opened(), config) and not store.damaged():
        folders.tidy(out)
        return store
    if pairs.is_blank():
        raise InputError(
            f"{pairs.root}: expected training images that show something, found all {len(pairs.image_names)} of the "
            f"same single color; `ptmst data check {pairs.name} --root {pairs.root}` tells more"
        )
    with folders.claimed(out, FOLDER), devices.arithmetic(config.precision):
        recipe = recipe.of_images(pairs)
        found = opened() if (out / INDEX).exists() else _new_store(config, recipe, device)
        store = _restored(found, config, device)
        # An expert that was damaged is made again, though fewer may be asked for.
        if missing := sorted({*_missing(store, config), *(found.experts.keys() - store.experts.keys())}):
            train_experts(missing, store, config, pairs, tower, device)
    return store


def _restored(store: TrajectoryStore, config: TeachConfig, device: torch.device) -> TrajectoryStore:
    """The store without the experts whose files are damaged or missing, which are then trained again; what they share
    is made again from the settings. Raises InputError where that gives other bits than the experts started from."""
    damaged = store.damaged()
    for name in sorted(damaged):
        _LOG.warning("%s: damaged or missing; made again", store.path / name)
    whole = store.without(damaged)
    if TOWER in damaged:
        whole.add_file(TOWER, warm_tower(config.encoder, store.recipe.pairs("warmup"), config.seed, device))
    for number, expert in whole.experts.items():
        starts = base_files(expert["bases"])
        if damaged & starts:
            draw = (config.seed, "expert", number)
            drawn = draw if len(starts) < len(expert["bases"]) else None
            whole.write_base(whole.student(draw).flatten(), drawn)
    shared = {name for expert in whole.experts.values() for name in base_files(expert["bases"])} | (damaged & {TOWER})
    if lost := sorted(name for name in shared if whole.hashes.get(name) != store.hashes[name]):
        for name in whole.hashes.keys() - store.hashes.keys():
            (store.path / name).unlink(missing_ok=True)
        raise InputError(
            f"{store.path / lost[0]}: expected to make the damaged file again, found other bits on this machine, or by "
            "this release; restore the file, or choose another --out"
        )
    return whole


def _missing(store: TrajectoryStore, config: TeachConfig) -> list[int]:
    return [number for number in range(config.experts) if number not in store.experts]


def _new_store(config: TeachConfig, recipe: Recipe, device: torch.device) -> TrajectoryStore:
    if not config.encoder.freeze_tower:
        # Before minutes of warm-up, and before experts are trained for days that nothing could be distilled from.
        _refuse_underivable(recipe.student((0,)), recipe)
    warn_of_random_weights(config.encoder, "--encoder.image-weights")
    weights = None
    if config.encoder.warmup_epochs:
        weights = warm_tower(config.encoder, recipe.pairs("warmup"), config.seed, device)
    layers = recipe.student((0,), weights).layers
    out = Path(config.out)
    store = TrajectoryStore(out, layers, config.epochs, config.kept_endpoints, recipe.to_json(), config.coding)
    if weights is not None:
        store.add_file(TOWER, weights)
    store.save_index()
    return store


def _refuse_underivable(student: Student, recipe: Recipe) -> None:
    tower, size = recipe.encoder.image_tower, recipe.data.image_size
    assert size is not None
    images, texts = torch.zeros(2, 3, size, size), torch.ones(2, recipe.text_width)
    if why_not_differentiable(student, "path", True, images, texts) is not None:
        reason = why_not_differentiable(student, "primals", True, images, texts)
        if reason is not None:
            raise InputError(
                f"image_tower {tower}: expected a tower that can be differentiated twice, found one that cannot "
                f"({reason}); choose another (docs/towers.md), or freeze it"
            )


def _refuse_other_settings(store: TrajectoryStore, asked: Recipe, coding: Coding) -> None:
    if not store.settings:
        raise InputError(
            f"{store.path}: expected a store with an encoder and data, found one without; choose another --out"
        )
    different = store.recipe.differences(asked)
    if store.coding != coding:
        different.append(("coding", store.coding, coding))
    if different:
        what = "; ".join(f"{key}: {old} in the store, {new} asked for" for key, old, new in different[:4])
        other_encoder = any(key.startswith(("encoder", "text_")) for key, _, _ in different)
        kind = "another encoder" if other_encoder else "different ones"
        raise InputError(
            f"{store.path}: expected a store of these settings, found {kind} ({what}); choose another --out"
        )
