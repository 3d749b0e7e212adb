"""Fresh students trained on a distilled set, and their retrieval recall (METHOD §6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from ptmst import config as configs
from ptmst import devices, files, progress
from ptmst.config import TEMPERATURE, EvaluateConfig, LossKind
from ptmst.contrast import StudentLoss, student_loss
from ptmst.data import Pairs, image_batches, renormalise
from ptmst.devices import arithmetic
from ptmst.distilled import DistilledSet, versions
from ptmst.encoders import TextTower, embed_captions
from ptmst.errors import Diverged, InputError
from ptmst.flat import Student
from ptmst.seeds import generator
from ptmst.store import TrajectoryStore
from ptmst.synthetic import SyntheticPairs
from ptmst.teachers import (
    data_of,
    load,
    made_of,
    student_from_settings,
    student_of,
    tell_random_weights,
    text_tower_of,
    with_another_tower,
)

SCORES = "scores.json"
METRICS = ("ir1", "ir5", "ir10", "tr1", "tr5", "tr10", "mean")
"""Of retrieval, which every data set has."""
ZERO_SHOT = "zero-shot"
"""Of data sets with classes: the accuracy of zero-shot classification."""
_VERSION = 1
_SCORES_AT_ONCE = 1 << 24
_IMAGES_AT_ONCE = 256
_HELD_BYTES = 4 << 30
_GIB = 1 << 30
_SHARE = 0.9
"""Of a CUDA device's memory that students may take; the rest is CUDA's own, and what lies between blocks."""


@dataclass(frozen=True)
class Scores:
    """What several students reach, percent: recalls by the names in METRICS, and ZERO_SHOT where there are classes."""

    students: tuple[Mapping[str, float], ...]
    provenance: Mapping[str, Any]
    """Protocol, selection, seed and what was evaluated; JSON values."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what was measured."""
        return (*METRICS, *([ZERO_SHOT] if ZERO_SHOT in self.students[0] else []))

    def mean(self, metric: str = "mean") -> float:
        return mean(student[metric] for student in self.students)

    def std(self, metric: str = "mean") -> float:
        """Sample standard deviation over students; 0 for a single one."""
        return stdev(student[metric] for student in self.students) if len(self.students) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        summary = {metric: {"mean": self.mean(metric), "std": self.std(metric)} for metric in self.metrics}
        return {"summary": summary, "students": [dict(s) for s in self.students], "provenance": dict(self.provenance)}


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as JSON, with their summary."""
    files.write_json(path, {"format": "ptmst-score-file", "version": _VERSION, **scores.to_json()})


def read_scores(path: Path) -> Scores:
    """Scores that `write_scores` wrote. Raises InputError for a file that holds none."""
    value = files.read_json(path, "score file", _VERSION)
    try:
        scores = Scores(tuple(value["students"]), value["provenance"])
        whole = bool(scores.students) and all(set(METRICS) <= student.keys() for student in scores.students)
        whole = whole and {"split", "pairs"} <= scores.provenance.keys()
        whole = whole and bool({"config", "experts"} & scores.provenance.keys())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: expected the recalls of students and how they came about, found others; score anew")
    return scores


def retrieval_recall(image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Recall@1/5/10 in percent: IR finds a text's image, TR any text of an image; `mean` is the mean of the six.

    image_embeds [N, H] and text_embeds [T, H] are compared by inner product: normalise them for cosines.
    image_of_text int64 [T] names each text's image. A rank is the number of strictly higher scores, so ties never
    depend on an order. Memory stays bounded whatever N and T. Images without a text count as not found.
    """
    images, texts = len(image_embeds), len(text_embeds)
    if image_of_text.shape != (texts,):
        raise InputError(f"image_of_text: expected one image for each of {texts} texts, found {image_of_text.shape}")
    if not images or not texts or int(image_of_text.min()) < 0 or int(image_of_text.max()) >= images:
        raise InputError(f"image_of_text: expected numbers of {images} images, found others; pass the set's own")
    if not bool(torch.isfinite(image_embeds).all() and torch.isfinite(text_embeds).all()):
        raise InputError("retrieval_recall: expected finite embeddings, found NaN or infinity; lower the student's η")
    image_of_text = image_of_text.to(image_embeds.device)

    image_rank = []
    for some in torch.arange(texts, device=image_embeds.device).split(max(1, _SCORES_AT_ONCE // images)):
        scores = text_embeds[some] @ image_embeds.T
        own = scores.gather(1, image_of_text[some, None])
        image_rank.append((scores > own).sum(1))
    text_rank = []
    for some in torch.arange(images, device=image_embeds.device).split(max(1, _SCORES_AT_ONCE // texts)):
        scores = image_embeds[some] @ text_embeds.T
        owned = image_of_text == some[:, None]
        best = scores.masked_fill(~owned, float("-inf")).amax(1, keepdim=True)
        text_rank.append((scores > best).sum(1).masked_fill(~owned.any(1), torch.iinfo(torch.int64).max))

    recall: dict[str, float] = {}
    for name, ranks in (("ir", torch.cat(image_rank)), ("tr", torch.cat(text_rank))):
        # Fractions of whole numbers in float64: exact to the last digit shown.
        recall |= {f"{name}{k}": 100.0 * int((ranks < k).sum()) / len(ranks) for k in (1, 5, 10)}
    return recall | {"mean": mean(recall.values())}


def zero_shot_accuracy(image_embeds: Tensor, prompt_embeds: Tensor, class_of_prompt: Tensor, labels: Tensor) -> float:
    """Share of images, in percent, whose own class is nearer than any other (Radford et al. 2021).

    image_embeds [N, H] and prompt_embeds [T, H] are normalised; a class is the mean of its prompts, normalised again.
    class_of_prompt int64 [T] and labels int64 [N] name classes from 0; -1 is an image that does not count. An image
    that is as near to another class counts as wrong.
    """
    # A product, since a scattered sum has an order of its own every time on CUDA.
    centres = F.normalize(F.one_hot(class_of_prompt).T.to(prompt_embeds) @ prompt_embeds, dim=1)
    counted = labels >= 0
    scores, own = image_embeds[counted] @ centres.T, labels[counted, None]
    others = scores.scatter(1, own, float("-inf")).amax(1)
    right = scores.gather(1, own)[:, 0] > others
    return 100.0 * int(right.sum()) / len(right)


def evaluate(distilled: DistilledSet, config: EvaluateConfig) -> Scores:
    """Train `config.students` fresh students on the set and score them on a split of its data (METHOD §6).

    Raises InputError for settings, data or weights that cannot be used, and Diverged for a student whose θ is no
    longer finite.
    """
    configs.check(config)
    config = as_distilled(distilled, config)
    device = devices.pick(config.device)
    if config.student is not None:
        distilled = _for_another_tower(distilled, config.student, config, device)
    settings, start = distilled.settings, distilled.tower
    data, tower = data_of(settings, config.root), text_tower_of(settings)
    scored = load(data, config.split)
    scored_on = Retrieval(scored, tower, device)
    choose = Retrieval(load(data, "val"), tower, device) if config.select == "best-val" else scored_on
    began = time.perf_counter()
    if config.together is None:
        # What the splits then hold is what is scored.
        with arithmetic("fp32"), _room_for(1):
            config = replace(config, together=_at_once(distilled, config, device, {scored_on, choose}))
    at_once = min(config.together or 1, config.students)

    students: list[dict[str, float]] = []
    epochs = (config.epochs + 1) * len(distilled)
    with arithmetic("fp32"), _room_for(at_once), progress.bar("evaluate", config.students * epochs) as bar:
        for numbers in _groups(config.students, at_once):
            draws = [(config.seed, "student", number) for number in numbers]
            fresh = [student_from_settings(settings, draw, start) for draw in draws]
            thetas = torch.stack([student.flatten() for student in fresh]).to(device)
            # Students differ in θ alone: the functions of one serve all.
            student = fresh[0].to(device)
            # Of each, evaluation by evaluation: what it is chosen by, and its scores.
            runs: list[list[tuple[float, dict[str, float]]]] = [[] for _ in numbers]
            for epoch, trained in train_students(student, thetas, distilled, config, draws):
                bar.advance(f"student {numbers[-1] + 1}/{config.students}", steps=len(numbers))
                last = epoch == epochs - 1
                if last or (config.select != "last" and epoch % (config.epochs + 1) % config.every == 0):
                    for run, theta in zip(runs, trained, strict=True):
                        found = scored_on.score(student, theta)
                        by = found if choose is scored_on else choose.score(student, theta)
                        run.append((by["mean"], found))
            for run in runs:
                students.append((run[-1] if config.select == "last" else max(run, key=itemgetter(0)))[1])
    provenance = {
        "split": config.split,
        "config": recorded(config),
        "set": dict(distilled.provenance),
        "pairs": distilled.num_pairs,
        "versions": versions(),
        **made_of(settings, scored),
    }
    return Scores(tuple(students), {**provenance, "seconds": time.perf_counter() - began})


def recorded(config: EvaluateConfig) -> dict[str, Any]:
    """What scores record of their settings: all but where the data lie and where it ran."""
    return {name: value for name, value in configs.to_json(config).items() if name not in ("root", "device")}


def _for_another_tower(
    distilled: DistilledSet, name: str, config: EvaluateConfig, device: torch.device
) -> DistilledSet:
    """The same pictures for students of another image tower: its start, and normalised as it wants them."""
    settings, data = distilled.settings, data_of(distilled.settings, config.root)
    if config.student_weights is None:
        tell_random_weights(name, settings["encoder"]["warmup_epochs"], "--student-weights")
    # In the precision that the set's own tower was warmed up with.
    with arithmetic(settings.get("precision", "fp32") if device.type == "cuda" else "fp32"):
        settings, start = with_another_tower(settings, data, name, config.student_weights, device)
    other = replace(distilled, settings=settings, tower=start)

    def prepared(pairs: SyntheticPairs) -> SyntheticPairs:
        return replace(pairs, images=renormalise(pairs.images, distilled.normalisation, other.normalisation))

    return replace(other, phases=tuple(replace(phase, pairs=prepared(phase.pairs)) for phase in other.phases))


def as_distilled(distilled: DistilledSet, config: EvaluateConfig) -> EvaluateConfig:
    """`config` with the set's own loss and temperature where none is asked for."""
    # Real pairs have no loss of their own; their temperature is the experts'.
    own = {"loss": "wbce", "temperature": distilled.settings.get("temperature", TEMPERATURE)}
    own |= distilled.provenance.get("config", {})
    loss: LossKind = config.loss or own["loss"]
    return replace(config, loss=loss, temperature=config.temperature or own["temperature"])


def evaluate_experts(store: TrajectoryStore, config: EvaluateConfig) -> Scores:
    """Score the first `config.students` experts at their last epoch: what all real pairs teach.

    Only the split, the root and the device of `config` matter besides: nothing is trained. Raises InputError where that
    epoch is no kept end point of the store, and for students of another tower.
    """
    if config.student is not None:
        raise InputError(
            f"{store.path}: expected a distilled set to train {config.student} on, found a store of experts"
        )
    if store.epochs not in store.endpoints:
        raise InputError(
            f"{store.path}: expected the last epoch, {store.epochs}, among the kept end points, found "
            f"{', '.join(map(str, store.endpoints))}; to score experts, teach with it among --endpoints"
        )
    where = devices.pick(config.device)
    data, tower = data_of(store.settings, config.root), text_tower_of(store.settings)
    scored = load(data, config.split)
    scored_on = Retrieval(scored, tower, where)
    student = student_of(store, ("experts",)).to(where)
    numbers = sorted(store.experts)[: config.students]
    with arithmetic("fp32"):
        students = [scored_on.score(student, store.expert(n).raw().point(store.epochs).to(where)) for n in numbers]
    provenance = {
        "split": config.split,
        "experts": numbers,
        "epochs": store.epochs,
        "pairs": len(load(data, "train")),
        "store_sha256": store.fingerprint,
        "versions": versions(),
        **made_of(store.settings, scored),
    }
    return Scores(tuple(students), provenance)


def train_students(
    student: Student,
    thetas: Tensor,
    distilled: DistilledSet,
    config: EvaluateConfig,
    draws: Sequence[tuple[int | str, ...]],
) -> Iterator[tuple[int, Tensor]]:
    """Train K students from θ [K, P] on the phases in order; yields (epoch, θ [K, P]) after every epoch of all phases.

    `student` has the functions that all share; each draws batches of its own. An epoch is ceil(N/batch) batches, each
    the first pairs of a fresh permutation. Raises Diverged for a non-finite θ.
    """
    layers, device = student.layers, thetas.device
    schedule = _per_phase_rates if config.protocol == "per-phase" else _reference_rates
    config = as_distilled(distilled, config)
    assert config.loss is not None and config.temperature is not None
    gradient = _gradient(student_loss(student.heads, config.loss, config.temperature))
    phases = [pairs.replace({name: leaf.to(device) for name, leaf in pairs.leaves().items()}) for pairs in distilled]
    seen = [_features(student, pairs.images) for pairs in phases]
    momentum = torch.zeros_like(thetas)
    for epoch, (phase, rates, restart) in enumerate(schedule(distilled, config)):
        pairs, images = phases[phase], seen[phase]
        rate = layers.expand(rates.to(device))
        momentum = torch.zeros_like(thetas) if restart else momentum
        batches = [_epoch_batches(len(pairs), config.batch_size, generator(*draw, "epoch", epoch)) for draw in draws]
        # At once, since a copy waits for the device.
        for index in torch.stack(batches, dim=1).to(device):
            similarity = torch.stack([pairs.similarity.batch(own) for own in index])
            g = gradient(thetas, images[index], pairs.texts[index], similarity)
            momentum = config.momentum * momentum + g + config.weight_decay * thetas
            thetas = thetas - rate * momentum
        for draw, finite in zip(draws, torch.isfinite(thetas).all(1).tolist(), strict=True):
            if not finite:
                eta = ", ".join(f"{r:.3g}" for r in rates.tolist())
                raise Diverged(f"student {draw}, epoch {epoch}: θ is not finite at η = {eta}; the set's η is too large")
        yield epoch, thetas


def _epoch_batches(pairs: int, batch: int, draw: torch.Generator) -> Tensor:
    """int64 [ceil(pairs/batch), batch]: the first of a permutation each, of all pairs where a batch holds them."""
    return torch.stack([torch.randperm(pairs, generator=draw)[:batch] for _ in range(-(-pairs // batch))])


def _groups(students: int, at_once: int) -> list[range]:
    """The numbers of the students that train together."""
    return [range(n, min(n + at_once, students)) for n in range(0, students, at_once)]


def students_that_fit(students: int, room: int, one: int, two: int) -> int:
    """How many of `students` train as one stack in `room` bytes, where a stack of one takes `one` and of two `two`.

    Each after the second takes what the second did. At least 1: there is no less.
    """
    return max(1, min(students, 1 + (room - one) // max(1, two - one)))


def _at_once(distilled: DistilledSet, config: EvaluateConfig, device: torch.device, splits: Iterable[Retrieval]) -> int:
    """Students that train as one stack: on a CPU by what is faster (bench/results), on CUDA as many as fit, and told.

    How many fit depends on the device's memory, the set and the student alone: not on what other programs take.
    """
    if device.type != "cuda":
        return config.students if distilled.settings["encoder"]["freeze_tower"] else 1
    if config.students == 1:
        return 1
    student = student_from_settings(distilled.settings, (config.seed, "student", 0), distilled.tower).to(device)
    for split in splits:
        split.hold(student)
    total = torch.cuda.get_device_properties(device).total_memory
    room = int(_SHARE * total) - torch.cuda.memory_allocated(device)
    one = _stack_bytes(1, student, distilled, config)
    two = _stack_bytes(2, student, distilled, config) if 2 * one <= room else 2 * one
    found = students_that_fit(config.students, room, one, two)
    progress.tell(
        f"evaluate: {found} of {config.students} students at a time; one takes {one / _GIB:.1f} GiB, each more about "
        f"{(two - one) / _GIB:.1f}, of the device's {total / _GIB:.1f} (--together sets another number)"
    )
    return found


def _stack_bytes(count: int, student: Student, distilled: DistilledSet, config: EvaluateConfig) -> int:
    """Most bytes that so many students take on a CUDA device as they train as one stack."""
    device = student.device
    # The first epoch is then one of the largest batches.
    phases = sorted(distilled.phases, key=lambda phase: len(phase.pairs), reverse=True)
    draws = [(config.seed, "student", number) for number in range(count)]
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with _room_for(count), suppress(Diverged):  # where phases are not in their order
        next(
            train_students(
                student, student.flatten().repeat(count, 1), replace(distilled, phases=tuple(phases)), config, draws
            )
        )
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _room_for(students: int) -> Iterator[None]:
    """Raises InputError, with advice, where a device's memory does not hold so many students."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = f"set --together {students // 2}" if students > 1 else "lower --batch-size"
        raise InputError(
            f"together {students}: expected room for so many students at once on the device, found its memory full; "
            f"{advice}, or end what else runs there"
        ) from error


def _gradient(loss_of: StudentLoss) -> Callable[..., Tensor]:
    """∇_θ of every student: θ [K, P] and stacked batches → [K, P]."""

    def gradient(thetas: Tensor, *batches: Tensor) -> Tensor:
        leaf = thetas.detach().requires_grad_()
        if len(thetas) == 1:
            loss = loss_of(leaf[0], *(batch[0] for batch in batches))
        else:
            loss = vmap(loss_of)(leaf, *batches).sum()
        (g,) = torch.autograd.grad(loss, leaf)
        return g

    return gradient


@torch.no_grad()
def _features(student: Student, images: Tensor) -> Tensor:
    """What the heads see of images: their features, where a tower is frozen."""
    return torch.cat([student.features(some) for some in images.split(_IMAGES_AT_ONCE)])


def _per_phase_rates(distilled: DistilledSet, config: EvaluateConfig) -> Iterator[tuple[int, Tensor, bool]]:
    """Per epoch: phase, η [G], and whether the momentum starts anew. Each phase uses its own η and a whole schedule."""
    for number, pairs in enumerate(distilled):
        for epoch in range(config.epochs + 1):
            yield number, pairs.lr * (0.1 if epoch > config.lr_drop else 1.0), epoch == 0


def _reference_rates(distilled: DistilledSet, config: EvaluateConfig) -> Iterator[tuple[int, Tensor, bool]]:
    """As published: one optimiser and one schedule over all phases, at the last phase's un-averaged η."""
    lr = distilled.phases[-1].last_lr
    for number in range(len(distilled)):
        for epoch in range(config.epochs + 1):
            dropped = number * (config.epochs + 1) + epoch > config.lr_drop
            yield number, lr * (0.1 if dropped else 1.0), False


class Retrieval:
    """A split to be scored: its images and text embeddings."""

    def __init__(self, pairs: Pairs, tower: TextTower, device: torch.device) -> None:
        self._pairs, self._device = pairs, device
        self._texts = embed_captions(tower, pairs.captions, device).to(device)
        self._held: list[Tensor] | None = None
        classes = pairs.classes()
        if classes is not None:
            prompts = [prompt for one in classes.prompts for prompt in one]
            numbers = [number for number, one in enumerate(classes.prompts) for _ in one]
            self._prompts = embed_captions(tower, prompts, device).to(device)
            self._class_of_prompt = torch.tensor(numbers, device=device)
            self._labels = classes.labels.to(device)
        self._classified = classes is not None

    @torch.no_grad()
    def score(self, student: Student, theta: Tensor) -> dict[str, float]:
        """Recalls of a student with parameters θ [P], and its accuracy where images have classes.

        All students that are scored share one frozen tower, or none.
        """
        heads = student.heads
        images = torch.cat([heads.embed_images(theta, some) for some in self._inputs(student)])
        texts = student.embed_texts(theta, self._texts)
        normal = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        if not bool(torch.isfinite(torch.cat(normal)).all()):
            raise Diverged("a student: its embeddings are not finite, though its θ is; the set's η is too large")
        recalls = retrieval_recall(*normal, self._pairs.image_of_text)
        if not self._classified:
            return recalls
        prompts = F.normalize(student.embed_texts(theta, self._prompts), dim=-1)
        return recalls | {ZERO_SHOT: zero_shot_accuracy(normal[0], prompts, self._class_of_prompt, self._labels)}

    @torch.no_grad()
    def hold(self, student: Student) -> None:
        """Read the images now, if they can be held on the device, where students like this one are to be scored."""
        self._inputs(student)

    def _inputs(self, student: Student) -> Iterable[Tensor]:
        """What the heads see of the images, batch by batch; held on the device where it fits."""
        if self._held is not None:
            return self._held
        count = len(self._pairs.image_paths)
        batches = image_batches(self._pairs, torch.arange(count).split(_IMAGES_AT_ONCE), self._device)
        made = map(student.features, batches)
        if student.tower is None and 4 * count * 3 * self._pairs.image_size**2 > _HELD_BYTES:
            return made
        self._held = list(made)
        return self._held
