"""Fresh students trained on a distilled set, and their retrieval recall (docs/method.md §6)."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch

from ptmst import schema
from ptmst.config import EvaluateConfig
from ptmst.data import Pairs, load_split, renormalize
from ptmst.errors import InputError
from ptmst.evaluation.metrics import TIES
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.evaluation.scores import Scores
from ptmst.evaluation.stacks import groups, room_for, students_at_once
from ptmst.evaluation.students import as_distilled, train_students
from ptmst.recipe import Recipe
from ptmst.students.image_towers import warn_of_random_weights
from ptmst.support import devices, progress
from ptmst.support.devices import arithmetic
from ptmst.support.provenance import versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.store import TrajectoryStore


def evaluate(distilled: DistilledSet, config: EvaluateConfig) -> Scores:
    """Train `config.students` fresh students on the set and score them on a split of its data (docs/method.md §6), or
    of other data that `config.on` names.

    Raises InputError for settings, data or weights that cannot be used, and Diverged for a student whose θ is no
    longer finite.
    """
    schema.check(config)
    config = as_distilled(distilled, config)
    device = devices.pick(config.device)
    distilled = distilled.at(config)
    if config.student is not None:
        distilled = for_another_tower(distilled, config.student, config.student_weights, device)
    recipe = distilled.recipe
    if config.root is not None:
        recipe.refuse_other_data()
    tower, scored = recipe.text_tower(), _scored_pairs(recipe, config, config.split)
    scorer = partial(RetrievalScorer, tower=tower, device=device, equal_captions=config.count_equal_captions)
    scored_on = scorer(scored)
    choose = scorer(_scored_pairs(recipe, config, "val")) if config.select == "best-val" else scored_on
    began = time.perf_counter()
    if config.together is None:
        # What the splits then hold is what is scored.
        with arithmetic("fp32"), room_for(1):
            config = replace(config, together=students_at_once(distilled, config, device, {scored_on, choose}))
    at_once = min(config.together or 1, config.students)

    students: list[dict[str, float]] = []
    epochs = (config.epochs + 1) * len(distilled)
    with (
        arithmetic("fp32"),
        devices.threads(config.threads, device),
        room_for(at_once),
        progress.bar("evaluate", config.students * epochs) as bar,
    ):
        for numbers in groups(config.students, at_once):
            seed_keys = [(config.seed, "student", number) for number in numbers]
            fresh = [distilled.student(seed_key) for seed_key in seed_keys]
            thetas = torch.stack([student.flatten() for student in fresh]).to(device)
            # Students differ in θ alone: the functions of one serve all.
            student = fresh[0].to(device)
            # Of each, evaluation by evaluation: what it is chosen by, and its scores.
            runs: list[list[tuple[float, dict[str, float]]]] = [[] for _ in numbers]
            for epoch, trained in train_students(student, thetas, distilled, config, seed_keys):
                bar.advance(f"student {numbers[-1] + 1}/{config.students}", steps=len(numbers))
                last = epoch == epochs - 1
                if last or (config.select != "last" and epoch % (config.epochs + 1) % config.every == 0):
                    for run, theta in zip(runs, trained, strict=True):
                        scores = scored_on.score(student, theta)
                        by = scores if choose is scored_on else choose.score(student, theta)
                        run.append((by["mean"], scores))
            for run in runs:
                students.append((run[-1] if config.select == "last" else max(run, key=itemgetter(0)))[1])
    provenance = {
        "split": config.split,
        "ties": TIES,
        "config": schema.decisive(config),
        "set": dict(distilled.provenance),
        "pairs": distilled.num_pairs,
        "versions": versions(),
        **recipe.provenance(scored),
    }
    return Scores(tuple(students), {**provenance, "seconds": time.perf_counter() - began})


def _scored_pairs(recipe: Recipe, config: EvaluateConfig, split: str) -> Pairs:
    """A split of the data that are scored, read as the students' own data are."""
    if config.on is None:
        return recipe.pairs(split)
    data = replace(recipe.data, name=config.on, root=config.on_root)
    data = replace(data, image_column=config.on_image_column, caption_column=config.on_caption_column)
    return load_split(data, split)


def for_another_tower(distilled: DistilledSet, name: str, weights: Path | None, device: torch.device) -> DistilledSet:
    """The set renormalized for another image tower, with that tower's initial weights: those of a file, or random ones,
    warmed up as the set's own tower was. Raises InputError for a tower or weights that cannot be used.
    """
    distilled.refuse_features(f"pictures for {name} to see")
    own = distilled.recipe
    # In the precision that the set's own tower was warmed up with.
    with arithmetic(own.precision if device.type == "cuda" else "fp32"):
        recipe, start = own.with_tower(name, weights, device)
    warn_of_random_weights(recipe.encoder, "--student-weights")
    other = replace(distilled, settings=recipe.to_json(), tower=start)

    def prepared(pairs: SyntheticPairs) -> SyntheticPairs:
        return replace(pairs, images=renormalize(pairs.images, distilled.normalization, other.normalization))

    return replace(other, phases=tuple(replace(phase, pairs=prepared(phase.pairs)) for phase in other.phases))


def refuse_unkept_end(store: TrajectoryStore, purpose: str = "") -> None:
    """Raises InputError where the last epoch of experts is no kept end point."""
    if store.epochs not in store.endpoints:
        raise InputError(
            f"{store.path}: expected the last epoch, {store.epochs}, among the kept end points, found "
            f"{', '.join(map(str, store.endpoints))}; {purpose}teach with it among --endpoints"
        )


_OF_SCORING = ("split", "on", "on_image_column", "on_caption_column", "count_equal_captions")
"""Settings that matter where nothing is trained."""


def evaluate_experts(store: TrajectoryStore, config: EvaluateConfig) -> Scores:
    """Score the first `config.students` experts at their last epoch: what all real pairs teach.

    Besides, only what `config` says of the data, the captions and the device matters: nothing is trained. Raises
    InputError where that epoch is no kept end point of the store, or there are no experts, and for students of another
    tower.
    """
    schema.check(config)
    if config.student is not None:
        raise InputError(
            f"{store.path}: expected a distilled set to train {config.student} on, found a store of experts"
        )
    refuse_unkept_end(store, "to score experts, ")
    if not len(store):
        raise InputError(f"{store.path}: expected at least one expert, found none; run `ptmst teach` to its end")
    device = devices.pick(config.device)
    store = store.at(config)
    recipe = store.recipe
    if config.root is not None:
        recipe.refuse_other_data()
    tower, scored = recipe.text_tower(), _scored_pairs(recipe, config, config.split)
    scored_on = RetrievalScorer(scored, tower, device, equal_captions=config.count_equal_captions)
    student = store.student(("experts",)).to(device)
    numbers = sorted(store.experts)[: config.students]
    with arithmetic("fp32"):
        students = [scored_on.score(student, store.expert(n).raw().point(store.epochs).to(device)) for n in numbers]
    provenance = {
        "split": config.split,
        "ties": TIES,
        "config": {name: schema.decisive(config)[name] for name in _OF_SCORING},
        "experts": numbers,
        "epochs": store.epochs,
        "pairs": store.experts[numbers[0]].get("pairs") or len(recipe.pairs("train")),
        "store_sha256": store.fingerprint,
        "versions": versions(),
        **recipe.provenance(scored),
    }
    return Scores(tuple(students), provenance)
