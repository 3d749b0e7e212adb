"""`python -m bench.store --json FILE`: bytes of a store and seconds to sample an expert from it.

nfnet_l0 and its text head (39.86 M parameters), end points 5 and 7, two experts of random numbers: a store's size does
not depend on their values. The size of twenty experts is by arithmetic: image towers that start alike are stored once,
and heads are drawn again.
The published layout is measured too: an interpolated trajectory of six timestamps in float32, loaded at every step.
"""

from __future__ import annotations

import statistics
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from bench.command import bare_parser, report
from bench.measure import copy_bandwidth
from bench.settings import TEXT_WIDTH, build_tower
from ptmst import LayerTable, TrajectoryStore
from ptmst.config import Coding
from ptmst.students.heads import ProjectionHead, drawn_head
from ptmst.trajectories.coding import BLOCK
from ptmst.trajectories.shortcut import Displacement, Expert, Shortcut

ENDPOINTS, EPOCHS, EXPERTS = (5, 7), 10, 20
PUBLISHED = 79.7e9
"""Bytes of the reference's buffers for one data set (docs/method.md §8)."""
_PART = 16 << 20
_ROUNDS = 5


def layer_table() -> LayerTable:
    tower, width = build_tower("nfnet_l0", 96)
    return LayerTable.of(image=tower, text=ProjectionHead(TEXT_WIDTH, width))


def filled(path: Path, layers: LayerTable, coding: Coding, experts: int) -> TrajectoryStore:
    """All image towers start alike; each text head is drawn by a key of its own, as `ptmst teach` does."""
    store = TrajectoryStore(path, layers, EPOCHS, ENDPOINTS, {}, coding)
    tower = 0.05 * torch.randn(layers.group_sizes[0])
    first, end = layers.layers_of_group[1]
    for number in range(experts):
        key = (0, "expert", number)
        head = drawn_head(layers.shapes[first:end], (*key, "text"))
        assert head is not None
        base = torch.cat([tower, head])
        moves = {k: Displacement.encode(delta, layers) for k, delta in _deltas(layers, number).items()}
        store.add(number, Expert(layers, base, moves, torch.rand(EPOCHS, layers.num_layers)), {}, key)
    return store


def _deltas(layers: LayerTable, number: int) -> dict[int, Tensor]:
    """θ^K − θ⁰ [P] of an expert: to the first end point, and a further move from there."""
    draw = torch.Generator().manual_seed(number)
    first, further = (0.001 * torch.randn(layers.num_params, generator=draw) for _ in ENDPOINTS)
    return dict(zip(ENDPOINTS, (first, first + further / 2), strict=True))


def errors(store: TrajectoryStore) -> dict[int, float]:
    """How far the first expert's displacements are from what was stored, relative to their lengths."""
    kept = store.expert(0).displacements
    return {
        k: float((kept[k].decode(store.layers) - delta).norm() / delta.norm())
        for k, delta in _deltas(store.layers, 0).items()
    }


def arithmetic(layers: LayerTable, coding: Coding, experts: int) -> int:
    """Bytes of parameters, scales and starts, without headers and tables of norms: some thousands."""
    blocks = sum(-(-size // BLOCK) for size in layers.sizes)
    one = {
        "fp16": 2 * layers.num_params,
        "int8": layers.num_params + 4 * blocks,
        "int4": sum(-(-size // 2) for size in layers.sizes) + 4 * blocks,
    }[coding]
    return 4 * layers.group_sizes[0] + experts * len(ENDPOINTS) * one


def deflated(file: Path) -> dict[str, float]:
    """What compression would leave of a file, of which a part is tried, and how long it would take to read it all."""
    with file.open("rb") as opened:
        opened.seek((size := file.stat().st_size) // 2)
        part = opened.read(_PART)
    small = zlib.compress(part, 6)
    share = len(small) / len(part)
    return {"deflated": share, "inflate s": size / len(part) * seconds(partial(zlib.decompress, small))}


def seconds(call: Callable[[], object], rounds: int = _ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def sample(store: TrajectoryStore, endpoint: int = ENDPOINTS[0]) -> Shortcut:
    return store.expert(0, (endpoint,)).shortcut(endpoint)


def main() -> int:
    options = bare_parser("store", __doc__)
    options.add_argument(
        "--work", type=Path, default=Path("runs/bench-store"), metavar="FOLDER", help="3 GB of files; may be removed"
    )
    asked = options.parse_args()
    torch.manual_seed(0)
    layers = layer_table()
    rows: list[dict[str, Any]] = []
    codings: tuple[Coding, ...] = get_args(Coding)
    for coding in codings:
        store = filled(asked.work / coding, layers, coding, 2)
        whole = arithmetic(layers, coding, EXPERTS)
        again = TrajectoryStore.open(store.path)
        expert = (store.path / store.experts[0]["file"]).stat().st_size
        rows.append(
            {
                "layout": f"store, {coding}",
                "bytes of 2 experts": store.bytes,
                "bytes of 2 experts by arithmetic": arithmetic(layers, coding, 2),
                "bytes of 20 experts by arithmetic": whole,
                "times smaller than published": PUBLISHED / whole,
                "bits a parameter": 8 * expert / (layers.num_params * len(ENDPOINTS)),
                "relative errors": list(errors(TrajectoryStore.open(store.path)).values()),
                **deflated(store.path / store.experts[0]["file"]),
                "open s": seconds(partial(TrajectoryStore.open, store.path)),
                "first sample s": seconds(partial(sample, again), 1),
                "sample s": seconds(partial(sample, again)),
                "sample to the last end point s": seconds(partial(sample, again, ENDPOINTS[-1])),
                "point of a kept expert s": seconds(partial(sample(again).point, 2)),
            }
        )
    timestamps = [[torch.randn(shape) for shape in layers.shapes] for _ in range(6)]
    images = layers.group_of_layer.count(0)
    for name, part in (("img", slice(0, images)), ("txt", slice(images, None))):
        torch.save([[stamp[part] for stamp in timestamps]], asked.work / f"{name}_replay_buffer_0.pt")
    paths = [asked.work / f"{name}_replay_buffer_0.pt" for name in ("img", "txt")]
    rows.append(
        {
            "layout": "published, six timestamps in float32",
            "bytes of an expert": sum(path.stat().st_size for path in paths),
            "sample s": seconds(lambda: [torch.load(path, map_location="cpu", weights_only=True) for path in paths]),
        }
    )
    copied = {"copied bytes/s": copy_bandwidth(torch.device("cpu"))}
    return report(asked.json, rows, parameters=layers.num_params, **copied)


if __name__ == "__main__":
    sys.exit(main())
