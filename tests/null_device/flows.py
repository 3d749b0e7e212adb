"""What tests/test_null_device.py runs, each in a process of its own on the null device.

`python -m null_device.flows NAME FOLDER` writes what it found to FOLDER/NAME.json.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import tiny
from null_device import counts, stand_ins
from ptmst import (
    DistilledSet,
    EvaluateConfig,
    LayerTable,
    LeafRates,
    OuterStep,
    Student,
    SyntheticPairs,
    TeachConfig,
    TrajectoryStore,
    distill,
    evaluate,
    train_teachers,
    write_scenes,
)
from ptmst.config import Selection
from ptmst.engine.derivatives import Batch, derivatives
from ptmst.evaluation.baselines import subset
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.report.live import Recorder
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.trajectories.prefetch import ExpertCache
from ptmst.trajectories.shortcut import Displacement, Expert
from ptmst.trajectories.spans import Span

Found = dict[str, Any]
FLOWS: dict[str, Callable[[Path], Found]] = {}
STEPS, MORE = 2, 4
"""Outer steps of a phase, and those of a longer one besides."""
SGD = LeafRates(images=100.0, texts=100.0, lr=0.001, similarity=1.0)
DISTILLATIONS: dict[str, Found] = {
    "eager": {"compile": "off"},
    "captured": {},
    "captured, more steps": {"steps": STEPS + MORE},
    "auto": {"keep": "auto", "chunk": "auto"},
    "sgd": {"optimizer": "sgd", "momentum": 0.5, "rates": SGD},
    "low rank, blend": {"similarity": "low-rank", "rank": 2, "blend": 0.5},
    "adjoint": {"adjoint": 0.5, "adjoint_clip": 1.0},
    "primals": {"keep": "primals"},
    "nothing": {"keep": "nothing"},
    "chunk": {"chunk": 2},
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "raw": {"trajectory": "raw"},
    "log, unit": {"lr_scale": "log", "similarity_range": "unit"},
    "tracked": {"track_recall": 1},
    "two spans": {"spans_per_step": 2},
    "progressive": {"progressive": True},
}
FROZEN: dict[str, Found] = {
    name: DISTILLATIONS[name] for name in ("captured", "adjoint", "primals", "chunk", "tracked", "progressive")
} | {"features": {"image_leaves": "features"}, "features, auto": {"image_leaves": "features", "keep": "auto"}}
EVALUATIONS: dict[str, Found] = {
    "evaluate": {},
    "alone": {"together": 1},
    "best-val": {"select": "best-val"},
    "reference": {"protocol": "reference"},
    "as-matched": {"protocol": "as-matched"},
}


def flow(function: Callable[[Path], Found]) -> Callable[[Path], Found]:
    FLOWS[function.__name__] = function
    return function


def counted(call: Callable[[], object]) -> dict[str, int]:
    """What a call does on the device, but for what it does not."""
    before = counts()
    call()
    return {name: value - before[name] for name, value in counts().items() if value != before[name]}


def captured(call: Callable[[], object], mode: str) -> str:
    """What becomes of a capture: the first line of its error, or nothing."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            call()
        graph.replay()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


@flow
def rules(folder: Path) -> Found:
    """The device itself: what it counts, and what it refuses."""
    x = torch.randn(256, 256, device="cuda")
    pinned = torch.ones(256).pin_memory()
    # Whose first time takes memory for good.
    x.sum().item(), x @ x

    def work() -> object:
        return ((x * 2) @ x).clone()

    def elsewhere(call: Callable[[], object]) -> str:
        """Runs it on a thread; the first line of its error, or nothing."""
        said = [""]

        def body() -> None:
            try:
                call()
            except RuntimeError as error:
                said[0] = str(error).splitlines()[0]

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        return said[0]

    captured(work, "global")
    recorded = counted(lambda: captured(work, "global"))
    refused = {}
    for number, mode in enumerate(("global", "thread_local", "relaxed")):
        others: list[str] = []
        # Of a size that no other has freed before, so that it is taken anew.
        fresh = torch.empty(1 << (20 + number))

        def with_another(fresh: torch.Tensor = fresh, others: list[str] = others) -> None:
            work()
            others.append(elsewhere(fresh.pin_memory))

        refused[mode] = {
            "capture": captured(with_another, mode),
            "thread": others,
            "synchronise": captured(torch.cuda.synchronize, mode),
            "item": captured(lambda: x.sum().item(), mode),
        }
    try:
        torch.empty(1 << 37, dtype=torch.uint8, device="cuda")
        full = ""
    except torch.OutOfMemoryError as error:
        full = type(error).__name__
    return {
        "item": counted(lambda: x.sum().item()),
        "to host": counted(x.cpu),
        "to device": counted(lambda: torch.ones(10).cuda()),
        "pinned": counted(lambda: pinned.to("cuda", non_blocking=True)),
        "clone": counted(x.clone),
        "product": counted(lambda: x @ x),
        "recorded": recorded,
        "refused": refused,
        "allocated": counted(lambda: torch.empty(1 << 30, dtype=torch.uint8, device="cuda")),
        "full": full,
    }


@flow
def way(folder: Path) -> Found:
    """All of the way: experts, distilled sets, students and baselines; steps are recorded as they are, not compiled."""
    torch.compile = lambda function, **how: function  # type: ignore[assignment]
    world = _World(folder / "way")
    found = {
        "teach": counted(lambda: train_teachers(world.on_device("taught"))),
        "teach, frozen": counted(lambda: train_teachers(world.on_device("taught-frozen", frozen=True))),
    }
    # What experts learn there is nothing, so these are taught on the host.
    store, frozen = (train_teachers(world.config(name, frozen=name == "frozen")) for name in ("store", "frozen"))
    sets: dict[str, DistilledSet] = {}
    short = replace(tiny.DISTILL, steps=STEPS, inner_steps=2, keep="path", chunk=None, device="cuda")

    def distilled(name: str, of: TrajectoryStore, **how: Any) -> None:
        config = replace(short, out=folder / name, **how)
        watch = Recorder(folder / f"{name}.course", name, of) if name == "tracked" else None
        found[name] = counted(lambda: sets.update({name: distill(config, of, watch=watch)}))

    for name, how in DISTILLATIONS.items():
        distilled(name, store, **how)
    for name, how in FROZEN.items():
        distilled(f"frozen, {name}", frozen, **how)
    with _reading_while_recording() as met:
        distilled("experts that are not resident", store)
    config = EvaluateConfig(students=2, epochs=1, lr_drop=1, every=1, device="cuda")
    with _arithmetic_of_features() as arithmetic:
        for name, how in EVALUATIONS.items():
            for of in ("captured", "frozen, captured"):
                found[f"{name}, {of}"] = counted(lambda how=how, of=of: evaluate(sets[of], replace(config, **how)))  # type: ignore[misc]
        found["experts"] = counted(lambda: evaluate_experts(store, config))
    for selection in get_args(Selection):
        found[selection] = counted(lambda selection=selection: subset(store, selection, 6, 0.1, 0, "cuda"))  # type: ignore[misc]
    return found | {"met": met, "arithmetic": sorted(arithmetic)}


@contextmanager
def _arithmetic_of_features() -> Iterator[set[tuple[str, bool]]]:
    """The precision of convolutions, and whether they repeat their bits, wherever images are embedded."""
    seen: set[tuple[str, bool]] = set()
    cudnn: Any = torch.backends.cudnn

    def features(student: Student, images: torch.Tensor, made: Any = Student.features) -> Any:
        seen.add((cudnn.conv.fp32_precision, cudnn.deterministic))
        return made(student, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "features", features)
        yield seen


class _World:
    """A rendered data set, and configs of stores beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        os.environ["PTMST_CACHE"] = str(folder / "cache")
        write_scenes(folder / "data", image_size=16, train=24, val=8, test=8, warmup=16, captions=2)

    def config(self, name: str, frozen: bool = False) -> TeachConfig:
        encoder = replace(tiny.ENCODER, freeze_tower=True, head_width=16) if frozen else tiny.ENCODER
        return replace(tiny.teach_config(self._folder), out=self._folder / name, encoder=encoder)

    def on_device(self, name: str, frozen: bool = False) -> TeachConfig:
        config = self.config(name, frozen)
        return replace(config, device="cuda", encoder=replace(config.encoder, warmup_epochs=1))


@contextmanager
def _reading_while_recording() -> Iterator[list[bool]]:
    """Experts that are not resident; one that is read ahead of a phase's second step is read as the first is recorded.

    The list has an entry for every recording: whether there was one.
    """
    met: list[bool] = []
    asked, recording, done = threading.Event(), threading.Event(), threading.Event()
    begin, end = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.capture_end
    made: Any = ExpertCache.__init__
    read = ExpertCache._read

    def at_begin(self: Any, *args: Any, **named: Any) -> None:
        begin(self, *args, **named)
        recording.set()

    def at_end(self: Any) -> None:
        met.append(asked.is_set() and done.wait(60))
        end(self)

    def at_phase(self: Any, *args: Any) -> None:
        for event in (asked, recording, done):
            event.clear()
        made(self, *args, room=0)

    def at_reading(self: Any, number: int) -> Any:
        if threading.current_thread() is threading.main_thread():
            return read(self, number)
        asked.set()
        recording.wait(60)
        try:
            return read(self, number)
        finally:
            done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "capture_begin", at_begin)
        patch.setattr(torch.cuda.CUDAGraph, "capture_end", at_end)
        patch.setattr(ExpertCache, "__init__", at_phase)
        patch.setattr(ExpertCache, "_read", at_reading)
        yield met


@flow
def rotation(folder: Path) -> Found:
    """Memory that the device reserves as experts are read that are not resident: after 3 and after 30, in bytes."""
    layers = LayerTable(("image.w", "text.w"), ((3_000_000,), (1_000,)), (0, 1))

    class Store:
        def __init__(self) -> None:
            self.layers = layers

        def __len__(self) -> int:
            return 4

        def expert(self, number: int, endpoints: tuple[int, ...]) -> Expert:
            delta = torch.ones(layers.num_params)
            return Expert(layers, delta, {1: Displacement.encode(delta, layers)}, torch.ones(1, 2))

    reserved = []
    store: Any = Store()
    with ExpertCache(store, lambda expert: expert.shortcut(1), (1,), torch.device("cuda", 0), room=0) as experts:
        for number in range(30):
            experts.get(number % 4, prefetch=(number + 1) % 4)
            reserved.append(torch.cuda.memory_reserved())
    return {"after 3": reserved[2], "after 30": reserved[-1]}


@flow
def launched(folder: Path) -> Found:
    """Kernels, fills and copies of an inner step, of its gradient and of an outer step, and nodes of a compiled one.

    The compiled step is that of a student of three layers, by Inductor and Triton; they take half a second a kernel.
    """
    found = {}
    student = Student.from_modules(ConvNet(16), ProjectionHead(tiny.TEXT_WIDTH, 64)).to("cuda")
    inputs = _outer_inputs(student, 16)
    way = derivatives(student, "wbce", 0.07, in_theta=False, keep="path", chunk=None, compiler=None)
    span, pairs, batches = inputs
    batch = Batch(pairs.images[batches[0]], pairs.texts[batches[0]], pairs.similarity.batch(batches[0]))
    step = way.step(span.start, pairs.lr, lambda: batch)
    with torch.no_grad():
        found["inner step"] = counted(lambda: way.step(span.start, pairs.lr, lambda: batch))
        found["its gradient"] = counted(lambda: step.along(span.start))
    outer = OuterStep(student)
    outer(*inputs)
    found["outer step"] = counted(lambda: outer(*inputs))
    small = tiny.three_layers().to("cuda")
    compiled, inputs = OuterStep(small, compile="on"), _outer_inputs(small, 8)
    found["recorded"] = counted(lambda: compiled(*inputs))
    found["replayed"] = counted(lambda: compiled(*inputs))
    return found


def _outer_inputs(student: Student, size: int) -> tuple[Span, SyntheticPairs, torch.Tensor]:
    case = tiny.outer_case(student.to("cpu"), size, "full")
    student.to("cuda")

    def moved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.cuda() for name, tensor in tensors.items()}

    span, pairs = case.span, case.pairs
    return span.replace(moved(span.tensors())), pairs.replace(moved(pairs.leaves())), case.batches.cuda()


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    stand_ins.install()
    stand_ins.answer()
    (folder / f"{name}.json").write_text(json.dumps(FLOWS[name](folder)))
