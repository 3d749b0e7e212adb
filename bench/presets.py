"""`python -m bench.presets --json FILE`: one outer step of every preset, at its real size with random weights.

A published row is measured unchanged, a method in the smallest row. A stopped run continues.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import cache
from typing import Any

from bench.command import bare_parser, collect
from ptmst.support.memory import keep_freed_memory, peak_memory

SMALLEST = "flickr30k-100"
"""The published row that methods are measured in."""
TEXT_WIDTH = 768
"""Of BERT base."""


def names() -> list[str]:
    """Published rows, then methods, as `--preset` takes them."""
    from ptmst.presets import catalogue

    published = [one.name for one in catalogue() if one.source.startswith("arXiv") and one.kind == "experiment"]
    return published + [f"{SMALLEST},{preset.name}" for preset in catalogue() if preset.kind == "method"]


def measure(name: str, chunk: int) -> dict[str, Any]:
    """Seconds and memory of one outer step, and the number of steps of a whole run."""
    import torch

    from ptmst.distillation.draws import draw_batches, draw_mixing
    from ptmst.engine.outer_step import OuterStep
    from ptmst.presets import experiment
    from ptmst.students.heads import make_student
    from ptmst.support.seeds import generator
    from ptmst.synthetic.pairs import SyntheticPairs
    from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity
    from ptmst.trajectories.spans import RawSpan

    whole = experiment(name)
    config, size = whole.distill, whole.teach.data.image_size
    assert size is not None
    frozen = whole.teach.encoder.freeze_tower
    config = replace(config, compile="off", device="cpu", keep="path" if config.keep == "auto" else config.keep)
    config = replace(config, chunk=None if config.batch_size <= chunk else chunk)
    student = make_student(whole.teach.encoder, size, TEXT_WIDTH, (0,), None)
    layers, draw = student.layers, generator("presets")
    # Some weights of towers start at zero, which would save work.
    start = student.flatten() + 1e-3 * torch.randn(layers.num_params, generator=draw)
    span = RawSpan.between(start, start + 1e-2 * torch.randn(layers.num_params, generator=draw), layers)
    count = config.phases[0].pairs
    similarity: Similarity = FullSimilarity.identity(count)
    if config.similarity == "low-rank":
        similarity = LowRankSimilarity.identity(count, config.rank, config.alpha, draw)
    images, texts = torch.randn(count, 3, size, size, generator=draw), torch.randn(count, TEXT_WIDTH, generator=draw)
    pairs = SyntheticPairs(images, texts, similarity, torch.full((2,), config.student_lr))
    batches = draw_batches(count, config.batch_size, config.inner_steps, draw)
    mixing = draw_mixing(config.batch_size, config.inner_steps, config.blend, draw) if config.blend else None
    step = OuterStep.of(student, config)
    with peak_memory() as peak:
        began = time.perf_counter()
        gradient = step(span, pairs, batches, mixing)
        seconds = time.perf_counter() - began
    assert all(bool(torch.isfinite(one).all()) for one in gradient.grads.values())
    return {
        "preset": name,
        "tower": whole.teach.encoder.image_tower,
        "frozen": frozen,
        "image size": size,
        "batch": config.batch_size,
        "chunk": config.chunk,
        "inner steps": config.inner_steps,
        "adjoint": config.adjoint,
        "parameters": layers.num_params,
        "outer steps": config.steps * len(config.phases),
        "experts": whole.teach.experts,
        "seconds": seconds,
        "peak bytes": sum(peak),
        "matching loss": float(gradient.loss),
    }


def store_bytes(name: str) -> int:
    """Of the experts of a preset in half precision, by arithmetic: without headers and tables of norms."""
    from ptmst.presets import experiment

    teach = experiment(name).teach
    image, text = _group_sizes(teach.encoder.image_tower, teach.encoder.freeze_tower)
    # Experts share the start of a trained tower, and those of heads are drawn again.
    shared = 0 if teach.encoder.freeze_tower else image
    return 4 * shared + 2 * len(teach.kept_endpoints) * teach.experts * (image + text)


@cache
def _group_sizes(tower: str, frozen: bool) -> tuple[int, int]:
    import timm
    import torch

    from ptmst.students.heads import ProjectionHead

    with torch.device("meta"):
        image = timm.create_model(tower.removeprefix("timm:"), num_classes=0)
        width = int(image.num_features)  # type: ignore[arg-type]
        trained = ProjectionHead(width, width) if frozen else image
        sizes = [sum(p.numel() for p in module.parameters()) for module in (trained, ProjectionHead(TEXT_WIDTH, width))]
    return sizes[0], sizes[1]


def main() -> int:
    options = bare_parser("presets", __doc__)
    options.add_argument("--chunk", type=int, default=10, help="images in the tower at a time")
    asked = options.parse_args()
    keep_freed_memory()
    collect(asked.json, "presets", names(), lambda row: str(row["preset"]), lambda name: [measure(name, asked.chunk)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
