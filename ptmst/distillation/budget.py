"""How much of an outer step is kept at a time, where that is left open: what fits into the device's memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptmst.config import DistillConfig, Keep
from ptmst.engine.compilation import compiles
from ptmst.engine.derivatives import Batch, derivatives, why_not_differentiable
from ptmst.errors import InputError
from ptmst.students.student import Student
from ptmst.support import devices, parallel
from ptmst.support.devices import arithmetic
from ptmst.support.live import LiveTensors
from ptmst.trajectories.store import TrajectoryStore

_LOG = logging.getLogger(__name__)
_SHARE = 0.45
"""Of the device's memory, for the inner steps of all processes that work side by side; experts may take half of what
is free (trajectories/prefetch.py)."""
_COMPILED = 0.35
"""Of an eager gradient's activations, what a compiled one needs at most where primals are not kept: 0.29 with nfnet_l0
(docs/outer-step.md)."""
_FEW = (2, 4)
"""Images that activations are measured with."""
_TRIES = 4
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes that a batch takes on a device while the loss is differentiated twice; or a frozen tower, once."""

    fixed: float
    """Whatever its size."""
    kept: float
    """For each image, from the step until its gradient is asked for."""
    most: float
    """For each image, at the worst moment of the gradient."""

    @classmethod
    def line(cls, images: tuple[int, int], kept: tuple[int, int], most: tuple[int, int]) -> Memory:
        """Through two measurements."""
        slopes = [(after - before) / (images[1] - images[0]) for before, after in (kept, most)]
        return cls(most[0] - images[0] * slopes[1], *slopes)


@dataclass(frozen=True)
class Way:
    """What is kept of an outer step, how many images go through the tower at a time, and the bytes that it needs."""

    keep: Keep
    chunk: int | None
    need: float


def ways(config: DistillConfig, parameters: int, frozen: bool, memory_of: Mapping[Keep, Memory]) -> Iterator[Way]:
    """Every way that `config` leaves open and `memory_of` knows, the fastest first: primals, then whole batches, then
    ever smaller chunks.

    All keep the inner loop's vectors of P `parameters`. Primals are the activations of all inner steps, behind a frozen
    tower of all images that are drawn; otherwise there are those of one batch, or chunk.
    """
    batch, steps = config.batch_size, config.inner_steps
    vectors = 4 * parameters * (steps + 2)
    if (primals := memory_of.get("primals")) is not None and config.chunk in ("auto", None):
        most_pairs = config.pairs if config.progressive else max(phase.pairs for phase in config.phases)
        images = min(steps * batch, most_pairs) if frozen else steps * batch
        need = vectors + primals.fixed + images * primals.kept + batch * (primals.most - primals.kept)
        yield Way("primals", None, need)
    for keep, memory in memory_of.items():
        for rows in (rows for rows in range(batch, 0, -1) if batch % rows == 0 and keep != "primals"):
            chunk = rows if rows < batch else None
            if config.chunk in ("auto", chunk):
                yield Way(keep, chunk, vectors + memory.fixed + rows * memory.most)


def settled(config: DistillConfig, store: TrajectoryStore, student: Student) -> DistillConfig:
    """`config` with `keep` and `chunk` chosen where they are `auto`, and on a CPU the number of threads.

    By the fastest way that fits into a share of the device's memory, or the machine's, measured with a few images and
    told in a line: a function of the device, the student and the settings, not of what else runs. Where a tower has no
    forward mode it is primals.

    Raises InputError for a tower that cannot be differentiated in any way that is left open.
    """
    config = _whole(config)
    if student.device.type == "cpu":
        config = replace(config, threads=config.threads or torch.get_num_threads())
    if config.image_leaves == "features":
        # Activations of heads are no more than their parameters, of which every way keeps those of all inner steps.
        keep = config.keep if config.keep != "auto" else "path" if isinstance(config.chunk, int) else "primals"
        return replace(config, keep=keep, chunk=None if config.chunk == "auto" else config.chunk)
    # In chunks there are no primals to keep.
    either: tuple[Keep, ...] = ("path",) if isinstance(config.chunk, int) else ("path", "primals")
    keeps: tuple[Keep, ...] = either if config.keep == "auto" else (config.keep,)
    derivable = _derivable(keeps, config, store, student)
    first, device = next(derivable), student.device
    if "auto" not in (config.keep, config.chunk):
        return replace(config, keep=first, chunk=None if config.chunk == "auto" else config.chunk)
    memory_of = {keep: _measured(keep, config, store, student) for keep in (first, *derivable)}
    if compiles(config.compile, device):
        memory_of |= {keep: replace(m, most=_COMPILED * m.most) for keep, m in memory_of.items() if keep != "primals"}
    total = devices.total_bytes(device)
    candidates = list(ways(config, student.layers.num_params, student.frozen is not None, memory_of))
    share = _SHARE / parallel.at_once()
    chosen = next((way for way in candidates if way.need <= share * total), candidates[-1])
    _LOG.info(
        "distill: keep %s, chunk %s; the inner steps need about %s of the %s's %s (--keep and --chunk set others)",
        chosen.keep,
        chosen.chunk or "none",
        _size(chosen.need),
        "machine" if device.type == "cpu" else "device",
        _size(total),
    )
    return replace(config, keep=chosen.keep, chunk=chosen.chunk)


def needed(config: DistillConfig, store: TrajectoryStore, student: Student) -> float:
    """Bytes that the inner steps of a settled configuration need, eager."""
    config = _whole(config)
    keep, chunk = config.keep, config.chunk
    if config.image_leaves == "features":
        return 8.0 * student.layers.num_params * (config.inner_steps + 2)
    assert keep != "auto" and chunk != "auto"
    memory_of = {keep: _measured(keep, config, store, student)}
    [way, *_] = ways(config, student.layers.num_params, student.frozen is not None, memory_of)
    return way.need


def _whole(config: DistillConfig) -> DistillConfig:
    """A batch as a number; a chunk of all its images is none."""
    config = config.sized()
    return replace(config, chunk=None) if config.chunk == config.batch_size else config


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{1024 * count / _GIB:.0f} MiB"


def _derivable(
    keeps: Sequence[Keep], config: DistillConfig, store: TrajectoryStore, student: Student
) -> Iterator[Keep]:
    """Those that torch can differentiate this student in, in their order. Raises InputError after none at all."""
    few, reasons = _few(2, store, student), dict[Keep, str]()
    for keep in keeps:
        if (reason := why_not_differentiable(student, keep, config.adjoint > 0, *few)) is None:
            yield keep
        else:
            reasons[keep] = reason
    if len(reasons) == len(keeps):
        tower, other = store.recipe.encoder.image_tower, "" if "primals" in keeps else "try keep primals, or "
        raise InputError(
            f"image_tower {tower}: expected a tower that keep {' or '.join(keeps)} can differentiate, found one it "
            f"cannot ({reasons[keeps[0]]}); {other}choose another (docs/towers.md)"
        )


def _few(images: int, store: TrajectoryStore, student: Student) -> tuple[Tensor, Tensor]:
    """So many images and texts of the store's form, on the student's device."""
    size, width = store.recipe.data.image_size, store.recipe.text_width
    assert size is not None
    return torch.zeros(images, 3, size, size, device=student.device), torch.ones(images, width, device=student.device)


def _measured(keep: Keep, config: DistillConfig, store: TrajectoryStore, student: Student) -> Memory:
    if config.precision == "bf16":
        student = student.in_bf16()
    bytes_of: dict[int, tuple[int, int]] = {}
    if student.device.type == "cpu":
        for images in _FEW:
            bytes_of[images] = _counted(keep, config.adjoint > 0, student, *_few(images, store, student))
        return Memory.line(_FEW, *zip(*bytes_of.values(), strict=True))
    with arithmetic(config.precision):
        # The first one also takes what libraries keep for good. Then the most of some: what was held before may be
        # freed late, by another thread, and counts against the next.
        _bytes(keep, config.adjoint > 0, student, *_few(_FEW[0], store, student))
        for images in _FEW:
            tries = (_bytes(keep, config.adjoint > 0, student, *_few(images, store, student)) for _ in range(_TRIES))
            bytes_of[images] = max(tries)
    kept_bytes, most_bytes = zip(*bytes_of.values(), strict=True)
    return Memory.line(_FEW, kept_bytes, most_bytes)


def _counted(keep: Keep, in_theta: bool, student: Student, images: Tensor, texts: Tensor) -> tuple[int, int]:
    """As `_bytes`, on a CPU, where the tensors are counted: the system would tell of its allocator's habits as well."""
    with LiveTensors() as live:
        return _step(keep, in_theta, student, images, texts, lambda: live.now), live.most


def _bytes(keep: Keep, in_theta: bool, student: Student, images: Tensor, texts: Tensor) -> tuple[int, int]:
    """On CUDA: what is kept of an inner step on these images, and the most that it and its gradient take, eager."""
    gc.collect()  # what is only about to be freed would be counted
    torch.cuda.reset_peak_memory_stats(images.device)

    def requested(which: str) -> int:
        # Not what is allocated for it, which depends on what was freed before.
        return int(torch.cuda.memory_stats(images.device)[f"requested_bytes.all.{which}"])

    before = requested("current")
    kept_bytes = _step(keep, in_theta, student, images, texts, lambda: requested("current") - before)
    return kept_bytes, requested("peak") - before


def _step(keep: Keep, in_theta: bool, student: Student, images: Tensor, texts: Tensor, held: Callable[[], int]) -> int:
    """Take an inner step on these images and then its gradient; what was `held` between the two."""
    if student.frozen is not None:
        leaf = images.requires_grad_()
        out = student.features(leaf)
        kept_bytes = held()
        torch.autograd.grad(out.sum(), leaf)
        return kept_bytes
    theta, eye = student.flatten(), torch.eye(len(images), device=images.device)
    implementation = derivatives(student, "wbce", 1.0, in_theta=in_theta, keep=keep, chunk=None, compiler=None)
    lr = torch.ones(student.layers.num_groups, device=images.device)
    with torch.no_grad():
        step = implementation.step(theta, lr, lambda: Batch(images, texts, eye))
        kept_bytes = held()
        step.along(torch.ones_like(theta))
    return kept_bytes
