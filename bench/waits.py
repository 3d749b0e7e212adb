"""`python -m bench.waits --json FILE`: everything that a user waits for, each beside what it is compared with.

Ours and the other are measured in one run, in turns, and the best of each counts. What a machine changes, it changes
for both: `python -m bench.slower` compares the ratios of two such files. `--only WORDS` measures the rows that match,
and `--demo` the demo too, which is beside nothing and takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import result
from bench.command import bare_parser

DEMO = "ptmst demo, empty cache"


@dataclass(frozen=True)
class Wait:
    """One thing that a user waits for."""

    goal: str
    other: str
    """What it is beside; both in words."""
    ours: Callable[[], object]
    beside: Callable[[], object] | None = None
    rounds: int = 3


def measured(name: str, wait: Wait) -> dict[str, Any]:
    """The row of a wait: the best of several rounds, in turns."""
    ours, theirs = [], []
    for _ in range(wait.rounds + 1):  # of which the first warms up
        ours.append(_seconds(wait.ours))
        if wait.beside is not None:
            theirs.append(_seconds(wait.beside))
    seconds = min(ours[1:] or ours)
    row = {"wait": name, "goal": wait.goal, "seconds": seconds, "beside": wait.other}
    return row | ({"seconds beside": min(theirs[1:]), "ratio": seconds / min(theirs[1:])} if theirs else {})


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def waits(folder: Path) -> dict[str, Callable[[], Wait]]:
    """What prepares each, by name."""
    from bench.cases import Case

    steps = (
        Case("tf_efficientnet_lite0", 64, 25, frozen=True),
        Case("convnet-64", 32, 20),
        Case("vit_tiny_patch16_224", 96, 8),
    )
    return {
        "from command to first student": partial(_start, folder),
        "an epoch of an expert on kept features": partial(_teach, folder),
        "all pictures for a trained tower, again": partial(_pictures, folder),
        "3 students of 100 pairs, trained and scored": partial(_students, folder),
        "an expert of 40 M parameters, read": partial(_read, folder),
        **{f"outer step: {case}": partial(_outer_step, case) for case in steps},
        DEMO: partial(_demo, folder),
    }


def _emoji(folder: Path) -> Any:
    """The training pairs, and the settings of the demo, on data that are written once."""
    from ptmst.config import WriteDataConfig
    from ptmst.data import load_split, write_data
    from ptmst.presets import experiment
    from ptmst.students.image_towers import prepared

    write_data(WriteDataConfig("emoji", folder / "data"))
    demo = experiment("demo")
    data = prepared(replace(demo.teach.data, root=folder / "data"), demo.teach.encoder)
    return load_split(data, "train"), replace(demo, teach=replace(demo.teach, data=data, out=folder / "store"))


def _store(folder: Path) -> Any:
    """A store, which is trained once, with random pairs of it beside it; and the settings of the demo."""
    from ptmst.evaluation.baselines import random_pairs
    from ptmst.teachers.teach import train_teachers

    _, demo = _emoji(folder)
    store = train_teachers(replace(demo.teach, experts=1, epochs=1, endpoints=(1,), workers=1))
    if not (folder / "set").exists():
        random_pairs(store, 100, 0.03, 0).save(folder / "set")
    return store, demo


def _start(folder: Path) -> Wait:
    _store(folder)
    command = [sys.executable, "-m", "ptmst", "evaluate", str(folder / "set"), "--students", "1", "--epochs", "1"]
    ours = partial(subprocess.run, command, check=True, capture_output=True)
    torch = partial(subprocess.run, [sys.executable, "-c", "import torch"], check=True)
    return Wait("4 s where all is cached", "import torch", ours, torch)


def _plain_heads(images: int, texts: int, **settings: float) -> Any:
    """Heads of the demo as modules, and their optimizer."""
    import torch

    from ptmst.students.heads import ProjectionHead

    heads = torch.nn.ModuleList([ProjectionHead(images, 256), ProjectionHead(texts, 256)])
    return heads, torch.optim.SGD(heads.parameters(), **settings)  # type: ignore[arg-type]


def _embedded(heads: Any, *inputs: Any) -> Iterator[Any]:
    import torch

    return (torch.nn.functional.normalize(head(x), dim=1) for head, x in zip(heads, inputs, strict=True))


def _teach(folder: Path) -> Wait:
    import torch
    from torch.nn import functional

    from ptmst.students.features import kept_features
    from ptmst.students.text_towers import embed_captions, text_tower
    from ptmst.teachers.training import train_on_pairs

    store, demo = _store(folder)
    pairs = store.recipe.pairs("train")
    student, config = store.student((0,)), replace(demo.teach, epochs=1 << 20, endpoints=(1,))
    features = kept_features(student, pairs, torch.device("cpu"))
    texts = embed_captions(text_tower(config.encoder), pairs.captions)
    epochs = train_on_pairs(student, pairs, texts, config, 0, features)
    next(epochs)
    heads, optimizer = _plain_heads(features.shape[1], texts.shape[1], lr=config.lr)

    def plain() -> None:
        for index in torch.randperm(len(pairs)).split(config.batch_size):
            images, captions = _embedded(heads, features[pairs.image_of_text[index]], texts[index])
            logits, labels = images @ captions.T / config.temperature, torch.arange(len(index))
            loss = functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)
            optimizer.zero_grad()
            (loss / 2).backward()
            optimizer.step()

    return Wait("no slower", "plain torch", lambda: next(epochs), plain)


def _pictures(folder: Path) -> Wait:
    import numpy as np
    import torch
    from PIL import Image

    from ptmst.data import image_batches
    from ptmst.data.pixels import decoded_once

    pairs, _ = _emoji(folder)
    kept, batches = decoded_once(pairs), torch.arange(len(pairs.image_names)).split(128)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (pairs.mean, pairs.std))

    class Files(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(pairs.image_paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            size = (pairs.image_size, pairs.image_size)
            with Image.open(pairs.image_paths[index]) as image:
                pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
            return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std

    def ours() -> None:
        for _ in image_batches(kept, batches, torch.device("cpu")):
            pass

    torch.testing.assert_close(next(image_batches(kept, batches, torch.device("cpu")))[5], Files()[5])

    def plain() -> None:
        for _ in torch.utils.data.DataLoader(Files(), 128, num_workers=os.cpu_count() or 1):
            pass

    return Wait("faster", "PIL and DataLoader", ours, plain)


def _students(folder: Path) -> Wait:
    import torch
    from torch.nn import functional

    from ptmst import DistilledSet, EvaluateConfig, evaluate
    from ptmst.students.features import kept_features

    store, _ = _store(folder)
    made, config = DistilledSet.load(folder / "set"), EvaluateConfig(students=3, epochs=100)
    student, [pairs] = store.student((0,)), list(made)
    scored = store.recipe.pairs("test")
    images, texts = kept_features(student, scored, torch.device("cpu")), torch.randn(len(scored), pairs.texts.shape[1])
    features, labels = student.features(pairs.images).detach(), torch.eye(100)

    def plain() -> None:
        for _ in range(config.students):
            heads, optimizer = _plain_heads(features.shape[1], texts.shape[1], lr=0.03, momentum=0.9, weight_decay=5e-4)
            for _ in range(config.epochs + 1):
                a, b = _embedded(heads, features, pairs.texts)
                loss = functional.binary_cross_entropy_with_logits(a @ b.T / 0.07, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                a, b = _embedded(heads, images, texts)
                (a @ b.T).topk(10)

    return Wait("no slower", "plain torch", lambda: evaluate(made, config), plain)


def _read(folder: Path) -> Wait:
    import torch

    from bench.store import filled, layer_table, sample
    from ptmst.trajectories.store import TrajectoryStore

    layers = layer_table()
    store = TrajectoryStore.open(filled(folder / "large", layers, "fp16", 1).path)
    timestamps = [[torch.randn(shape) for shape in layers.shapes] for _ in range(6)]
    torch.save([timestamps], folder / "replay_buffer.pt")
    published = partial(torch.load, folder / "replay_buffer.pt", weights_only=True)
    return Wait("hidden behind a step", "torch.load of a published buffer", partial(sample, store), published)


def _outer_step(case: Any) -> Wait:
    import torch

    from bench.cases import CLEAN
    from bench.settings import opponent, setting
    from ptmst import OuterStep

    s = setting(case, torch.device("cpu"))
    step = OuterStep(s.student, adjoint=case.adjoint, keep="primals")
    return Wait("faster", CLEAN, partial(s.step, step), partial(s.opponent, opponent(case)))


def _demo(folder: Path) -> Wait:
    environment = os.environ | {"PTMST_CACHE": str(folder / "cache of the demo")}
    command = [sys.executable, "-m", "ptmst", "demo", "--out", str(folder / "demo")]
    run = partial(subprocess.run, command, check=True, capture_output=True, env=environment)
    return Wait("5 min on two cores with AVX-512, 7 with AVX2", "", run, rounds=0)


def main() -> int:
    options = bare_parser("waits", __doc__)
    options.add_argument("--only", metavar="WORDS", default="", help="rows whose name has these words")
    options.add_argument("--demo", action="store_true", help="the demo too")
    asked = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["PTMST_CACHE"] = f"{temporary}/cache"
        for name, prepare in waits(Path(temporary)).items():
            if asked.only in name and (asked.demo or name != DEMO):
                wait = prepare()
                rows.append(row := measured(name, wait))
                beside = f", {row['ratio']:.2f} × {wait.other}" if wait.other else ""
                print(f"{name}: {row['seconds']:.2f} s{beside}", flush=True)
    result.write(asked.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
