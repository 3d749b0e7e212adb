"""One cell of a grid: what a method is run with at a size and seed, and what running and scoring it gives."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from ptmst import schema
from ptmst.config import (
    TUNING_SEEDS,
    Device,
    DistillConfig,
    EvaluateConfig,
    Experiment,
    LossKind,
    Protocol,
    Selection,
)
from ptmst.distillation.budget import settled
from ptmst.distillation.choosing import stand_in
from ptmst.distillation.distill import averaged_and_last, distill_with
from ptmst.engine.compilation import compiles
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import Diverged
from ptmst.evaluation.baselines import subset
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.metrics import TIES
from ptmst.evaluation.students import as_distilled
from ptmst.presets import applied, methods
from ptmst.support import devices
from ptmst.support.memory import peak_memory
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.trajectories.store import TrajectoryStore

FULL, FULL_HEADS = "all real pairs", "all real pairs, heads alone"
"""What stands in for a method where experts are scored: of a trained tower, and of a frozen one."""


@dataclass(frozen=True)
class Run:
    """One cell: a method at a size and seed, with what is tuned of it."""

    method: str
    pairs: int
    seed: int
    factor: float = 1.0
    """On all leaf rates but η's."""
    loss: LossKind = "wbce"
    lr: float = 0.0
    """Loss and student learning rate, of real pairs."""
    split: Literal["test", "val"] = "test"
    batch: float = 0.0
    """Share of the pairs in an inner batch, of real pairs in a batch of students; 0 = the experiment's batch size."""
    similarity: float = 1.0
    """On the rate of S, besides `factor`."""
    eta: float = 1.0
    """On the start of η."""
    steps: int = 1
    """On the outer steps."""
    protocol: Protocol | None = None
    """Of students; none = the experiment's."""

    @property
    def tunes(self) -> bool:
        """Whether it is a trial, on a seed that no method is compared on."""
        return self.seed in TUNING_SEEDS


def recalls(scored: Mapping[str, Any]) -> list[float]:
    """Mean recall of every student; that of one that diverged is 0."""
    return [*(student["mean"] for student in scored["students"]), *[0.0] * scored["lost"]]


def store_folder(out: Path, seed: int, frozen: bool) -> Path:
    """Where the experts of a seed are."""
    return out / f"store-{seed}{'-frozen' if frozen else ''}"


def set_folder(out: Path, run: Run) -> Path:
    """Where the set of a run is kept, if it is compared."""
    return out / "sets" / f"{run.method}-{run.pairs}-{run.seed}"


def settings(base: Experiment, run: Run) -> Experiment:
    """A method's settings at a size: phases cut to it, no batch larger than a phase, as tuned."""
    count = len(base.distill.phases)
    shares = _shares(run.pairs, count)
    phases = tuple(replace(phase, pairs=share) for share, phase in zip(shares, base.distill.phases, strict=True))
    # One batch for all methods: the smallest phase holds it.
    cut = replace(base.distill, phases=phases).sized()
    cut = replace(cut, batch_size=min(cut.batch_size, *shares))
    experiment = applied(run.method, replace(base, distill=cut))
    distill = experiment.distill
    rates = distill.rates.scaled(run.factor)
    changed = replace(
        distill,
        rates=replace(rates, similarity=rates.similarity * run.similarity),
        student_lr=distill.student_lr * run.eta,
        steps=distill.steps * run.steps,
    )
    if run.batch:
        smallest = min(phase.pairs for phase in distill.phases)
        changed = replace(changed, batch_size=min(max(1, round(run.batch * run.pairs)), smallest), batch_share=None)
    return replace(experiment, distill=changed)


def evaluation(base: Experiment, made: Sequence[int]) -> EvaluateConfig:
    """The experiment's evaluation settings, rescaled to equal student steps for phases of the sizes `made`.

    Epochs are by phase: as they are, two phases would train students for twice as long as one of all their pairs.
    """
    config, count = base.evaluate, len(base.distill.phases)

    def batches(sizes: Sequence[int]) -> int:
        return sum(-(-size // config.batch_size) for size in sizes)

    longer = batches(_shares(sum(made), count)) / batches(made)
    epochs, high = (max(1, round(longer * (n + 1))) for n in (config.epochs, config.lr_drop))
    return replace(config, epochs=epochs - 1, lr_drop=high - 1)


def _shares(num_pairs: int, count: int) -> list[int]:
    return [num_pairs // count + (number < num_pairs % count) for number in range(count)]


def measure(asked: tuple[Path, Experiment, Run, Device]) -> tuple[Run, dict[str, Any]]:
    """The run, and its row: `run`, scores of its `students` and how many were `lost`, provenance, cost.

    A set that is compared is kept in the folder, where the experts are. Its row has `last leaves` too, which are scores
    without the average that the set is.
    """
    out, base, run, device = asked
    row: dict[str, Any] = {"run": schema.to_json(run), "lost": 0, "students": []}
    if run.method in (FULL, FULL_HEADS):
        every = replace(base.evaluate, students=base.teach.experts, split=run.split, device=device)
        scores = evaluate_experts(TrajectoryStore.open(store_folder(out, run.seed, run.method == FULL_HEADS)), every)
        return run, row | {"students": [dict(s) for s in scores.students], "provenance": dict(scores.provenance)}
    last = None
    if run.method in methods():
        experiment = settings(base, run)
        store = TrajectoryStore.open(store_folder(out, run.seed, experiment.teach.encoder.freeze_tower))
        sizes = [phase.pairs for phase in experiment.distill.phases]
        loss, temperature = experiment.distill.loss, experiment.distill.temperature
        made, last, cost = _distilled(replace(experiment.distill, seed=run.seed, device=device), store)
        cost["settings"] = schema.decisive(experiment.distill)
    else:
        selection = cast(Selection, run.method)
        store = TrajectoryStore.open(store_folder(out, run.seed, base.teach.encoder.freeze_tower))
        sizes = [run.pairs]
        loss, temperature = run.loss, base.teach.temperature
        began = time.process_time()
        with peak_memory() as peak:
            made = subset(store, selection, run.pairs, run.lr, run.seed, device)
        if run.batch:
            batch = max(1, round(run.batch * run.pairs))
            made = replace(made, provenance={**made.provenance, "config": {"batch_size": batch}})
        cost = {"seconds": time.process_time() - began, "peak bytes": sum(peak)}
        if "never_learned" in made.provenance:
            cost["never learned"] = made.provenance["never_learned"]
    evaluate_config = evaluation(base, sizes)
    # Batches of real pairs are a choice too, of as many steps as at once.
    of_real_pairs: Protocol | None = "as-matched" if run.method not in methods() and run.batch else None
    evaluate_config = replace(evaluate_config, protocol=of_real_pairs or run.protocol or evaluate_config.protocol)
    evaluate_config = replace(evaluate_config, loss=loss, temperature=evaluate_config.temperature or temperature)
    evaluate_config = replace(evaluate_config, seed=run.seed, split=run.split, device=device)
    if made is not None:
        evaluate_config = as_distilled(made, evaluate_config)
    provenance = {
        "split": run.split,
        "ties": TIES,
        "config": schema.decisive(evaluate_config),
        **store.recipe.provenance(store.recipe.pairs(run.split)),
    }
    row |= {"provenance": provenance, **cost}
    if not run.tunes:
        _replaced(set_folder(out, run), made)
    began = time.process_time()
    row |= {"lost": evaluate_config.students} if made is None else one_by_one(made, evaluate_config)
    row["evaluation seconds"] = time.process_time() - began
    if last is not None and not run.tunes:
        row["last leaves"] = one_by_one(last, evaluate_config)
    return run, row


def _replaced(folder: Path, made: DistilledSet | None) -> None:
    """Only the set of the last such run is kept, and none where that diverged."""
    shutil.rmtree(folder, ignore_errors=True)
    if made is not None:
        made.save(folder)


def _distilled(
    config: DistillConfig, store: TrajectoryStore
) -> tuple[DistilledSet | None, DistilledSet | None, dict[str, Any]]:
    """The set, none where its distillation diverged; that of the last leaves, where it is an average of them; and what
    it cost, compilation apart."""
    config = settled(config, store, store.student((config.seed, "student")).to(devices.pick(config.device)))
    step = shared_outer_step(config, store)
    if step.compiles:
        distill_with(step, replace(stand_in(config, store), steps=1), store)
    began = time.process_time()
    try:
        with peak_memory() as peak:
            made, last = averaged_and_last(step, config, store)
    except Diverged as error:
        return None, None, {"why": str(error)}
    losses = [round(float(phase.history["loss"][-20:].sum(1).mean()), 4) for phase in made.phases]
    cost = {"seconds": time.process_time() - began, "peak bytes": sum(peak), "loss": losses}
    return made, last if config.ema else None, cost


_STEPS: dict[Any, OuterStep] = {}


def shared_outer_step(config: DistillConfig, store: TrajectoryStore) -> OuterStep:
    """Outer steps; one that compiles is shared within the process so that each graph compiles once."""
    device = devices.pick(config.device)
    if not compiles(config.compile, device):
        return OuterStep.of(store.student((config.seed, "student")).to(device), config)
    # A frozen tower is a store's own.
    tower_or_layers = store.fingerprint if store.recipe.encoder.freeze_tower else store.layers
    computed = (config.batch_size, config.loss, config.temperature, config.adjoint, config.adjoint_clip)
    key = (tower_or_layers, *computed, config.precision, config.keep, config.chunk, config.compile, device)
    if key not in _STEPS:
        _STEPS[key] = OuterStep.of(store.student((config.seed, "student")).to(device), config)
    return _STEPS[key]


def one_by_one(made: DistilledSet, config: EvaluateConfig) -> dict[str, Any]:
    """Scores of every student; those that diverge are counted, and cost the others nothing."""
    students: list[dict[str, float]] = []
    seeds = [config.seed * config.students + number for number in range(config.students)]
    for seed in seeds:
        try:
            scores = evaluate(made, replace(config, students=1, seed=seed))
        except Diverged:
            continue
        students += [dict(student) for student in scores.students]
    return {"students": students, "lost": config.students - len(students), "student seeds": seeds}
