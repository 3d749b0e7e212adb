"""One student to keep: trained on a set as `ptmst evaluate` trains them, or an expert of a store as it is."""

from __future__ import annotations

import torch

from ptmst import schema
from ptmst.config import EvaluateConfig, TrainConfig
from ptmst.errors import InputError
from ptmst.evaluation.evaluate import for_another_tower, refuse_unkept_end
from ptmst.evaluation.students import as_distilled, train_students
from ptmst.retrieval.trained_student import TrainedStudent
from ptmst.support import devices, progress
from ptmst.support.devices import arithmetic
from ptmst.support.provenance import versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.trajectories.store import TrajectoryStore


def train_student(source: DistilledSet | TrajectoryStore, config: TrainConfig) -> TrainedStudent:
    """A fresh student that learns from a distilled set, or from real pairs that `subset` selected; of a store its
    expert at the last epoch, who has learned from all real pairs.

    Raises InputError for a store without that expert or epoch, and for towers or weights that cannot be used; Diverged
    where parameters are no longer finite.
    """
    schema.check(config)
    device = devices.pick(config.device)
    with devices.threads(config.threads, device), arithmetic("fp32"):
        if isinstance(source, TrajectoryStore):
            return _expert(source, config, device)
        return _taught(source, config, device)


def _taught(made: DistilledSet, config: TrainConfig, device: torch.device) -> TrainedStudent:
    how = as_distilled(made, EvaluateConfig(students=1, protocol=config.protocol, seed=config.seed))
    made = made.at(config)
    if config.student is not None:
        made = for_another_tower(made, config.student, config.student_weights, device)
    texts = made.recipe.text_tower()  # refused before anything is computed
    draw = (config.seed, "student", 0)
    student = made.student(draw).to(device)
    thetas = student.flatten()[None].to(device)
    with progress.bar("train", (how.epochs + 1) * len(made)) as bar:
        for _, trained in train_students(student, thetas, made, how, [draw]):
            thetas = trained
            bar.advance("")
    provenance = {"config": schema.decisive(how), "set": dict(made.provenance), "versions": versions()}
    return TrainedStudent(made.recipe, student, thetas[0], texts, provenance)


def _expert(store: TrajectoryStore, config: TrainConfig, device: torch.device) -> TrainedStudent:
    if config.student is not None:
        raise InputError(f"{store.path}: expected a set to train {config.student} on, found a store of experts")
    store = store.at(config)
    if config.expert not in store.experts:
        found = ", ".join(map(str, sorted(store.experts))) or "none"
        raise InputError(f"expert: expected one of {store.path} ({found}), found {config.expert}; choose it")
    refuse_unkept_end(store)
    student = store.student((config.seed, "student", 0)).to(device)
    theta = store.expert(config.expert).raw().point(store.epochs).to(device)
    provenance = {"expert": config.expert, "store_sha256": store.fingerprint, "versions": versions()}
    return TrainedStudent(store.recipe, student, theta, store.recipe.text_tower(), provenance)
