"""Retrieval recall at the size of COCO's 5k test split; `python -m bench.retrieval` runs it."""

from __future__ import annotations

import resource

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional as F

from ptmst import retrieval_recall

IMAGES, TEXTS, WIDTH = 5_000, 25_000, 768


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_retrieval_recall(benchmark: BenchmarkFixture) -> None:
    draw = torch.Generator().manual_seed(0)
    image_of_text = torch.arange(TEXTS) // (TEXTS // IMAGES)
    images = F.normalize(torch.randn(IMAGES, WIDTH, generator=draw), dim=1)
    texts = F.normalize(images[image_of_text] + 0.6 * torch.randn(TEXTS, WIDTH, generator=draw) / 8, dim=1)
    before = peak_mb()
    recall = benchmark.pedantic(retrieval_recall, args=(images, texts, image_of_text), rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {
        "images": IMAGES,
        "texts": TEXTS,
        "width": WIDTH,
        "peak_extra_mb": peak_mb() - before,
    }
    scores = images.double() @ texts.double().T
    own = scores[image_of_text, torch.arange(TEXTS)]
    ranks = (scores > own).sum(0)
    # Scores that are equal in float32 may be ranked either way: a few of the 25,000 ranks may be off by one.
    for k in (1, 5, 10):
        assert abs(100 * float((ranks < k).double().mean()) - recall[f"ir{k}"]) < 0.02
