"""Training and evaluation: images per second, and seconds per student."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from bench import stacks
from bench.gpu.rows import Sheet, Wrong
from bench.gpu.timing import alone
from bench.measure import peak_memory
from bench.result import Row
from ptmst.config import DataConfig, EncoderConfig, TeachConfig, WriteDataConfig
from ptmst.data import Pairs, load_split, write_data
from ptmst.students.heads import make_student
from ptmst.students.image_towers import prepared
from ptmst.students.text_towers import embed_captions, text_tower
from ptmst.support.devices import arithmetic
from ptmst.teachers.training import train_on_pairs

CUDA = torch.device("cuda", 0)
_TEXT_WIDTH = 768
_EPOCHS = 101
"""Epochs of a student, as published."""
_AGREE = 1e-3
"""Largest relative distance between students trained in a stack and the same ones trained one by one."""


def teach(sheet: Sheet, tower: str, size: int, images: int, batch: int) -> None:
    """Decoding on the host, and training one expert on images that are decoded already."""
    encoder = EncoderConfig(image_tower=tower, text_width=_TEXT_WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(WriteDataConfig("scenes", root, size, train=images, val=1, test=1, warmup=0, captions=1))
        data = prepared(DataConfig(name="scenes", root=root, image_size=size), encoder)
        sheet.row("decode", 20, partial(_decode, load_split(data, "train")))
        for precision in ("fp32", "tf32"):
            config = TeachConfig(data=data, encoder=encoder, epochs=2, lr=0.01, batch_size=batch, precision=precision)
            sheet.row(f"teach, {precision}", 20, partial(_teach, load_split(data, "train"), config))


def _decode(pairs: Pairs) -> Row:
    began = time.perf_counter()
    pairs.pixels(torch.arange(len(pairs)))
    return {"size": pairs.image_size, "images/s": len(pairs) / (time.perf_counter() - began)}


def _teach(pairs: Pairs, config: TeachConfig) -> Row:
    pairs.pixels(torch.arange(len(pairs)))
    texts = embed_captions(text_tower(config.encoder), pairs.captions, CUDA).to(CUDA)
    student = make_student(config.encoder, pairs.image_size, _TEXT_WIDTH, (0,)).to(CUDA)
    ends = []

    def train() -> None:
        for _ in train_on_pairs(student, pairs, texts, config, 0):
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with alone(), arithmetic(config.precision):
        peak = peak_memory(CUDA, train)
    # The first epoch sets up libraries.
    return {
        "tower": config.encoder.image_tower,
        "size": pairs.image_size,
        "batch": config.batch_size,
        "precision": config.precision,
        "images/s": len(pairs) / (ends[-1] - ends[-2]),
        "peak MB": peak / 2**20,
    }


def students(sheet: Sheet, tower: str, size: int, count: int) -> None:
    """The students of an evaluation, one at a time and as one stack: the demo's, and a large tower's."""
    _stacks(sheet, "demo", stacks.encoder(frozen=False), stacks.SIZE, stacks.STUDENTS)
    _stacks(sheet, tower, EncoderConfig(image_tower=tower), size, count)


def _stacks(sheet: Sheet, name: str, encoder: EncoderConfig, size: int, count: int) -> None:
    for together in (1, count):
        sheet.row(f"{name}, {together} together", 40, partial(_students, encoder, size, count, together))


def _students(encoder: EncoderConfig, size: int, count: int, together: int) -> Row:
    train = partial(stacks.trained, encoder, size, count, device=CUDA)
    with alone(), arithmetic("fp32"):
        peak = peak_memory(CUDA, partial(train, together))
        began = time.perf_counter()
        thetas = train(together)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        other = thetas if together == 1 else train(1)
    distance = float((thetas - other).norm() / other.norm())
    if not distance <= _AGREE:
        raise Wrong(f"a stack's students: expected those trained one by one, found them {distance:.1e} apart")
    return {
        "tower": encoder.image_tower,
        "size": size,
        "pairs": stacks.PAIRS,
        "students": count,
        "together": together,
        "epochs": stacks.EPOCHS,
        "whole epochs": _EPOCHS,
        "s": seconds,
        "students/s": count / seconds * stacks.EPOCHS / _EPOCHS,
        "peak MB": peak / 2**20,
    }
