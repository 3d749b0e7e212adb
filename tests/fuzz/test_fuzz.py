"""A share of the mutants; `PYTHONPATH=tests python -m fuzz` judges ten thousand (bench/results/fuzz.json)."""

from __future__ import annotations

import io
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2")
pytest.importorskip("pyarrow")
pytest.importorskip("webdataset")

import pyarrow.parquet as pq

from fuzz import judge as judging
from fuzz import readers
from fuzz.judge import HARMLESS, OVERLY, REFUSED, judge
from fuzz.mutations import mutant
from fuzz.samples import FORMS, samples, write_images
from ptmst.data.tables import Table
from ptmst.errors import InputError

MUTANTS = 40
MOST_OVERLY = 0.2
"""Of the pictures that OpenCV reads, those that are refused: it also reads what is cut amid the pixels."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_whole_files_are_read_as_an_independent_reader_reads_them(form: str, root: Path) -> None:
    assert {judge(form, whole, root).outcome for whole in samples(form)} == {"alike"}


@pytest.mark.parametrize("form", FORMS)
def test_mutants_are_refused_in_one_line_or_read_alike(form: str, root: Path) -> None:
    verdicts = [judge(form, mutant(form, number, samples(form)), root) for number in range(MUTANTS)]
    assert not [(i, *verdict[:2]) for i, verdict in enumerate(verdicts) if verdict.outcome not in HARMLESS]
    counts = Counter(verdict.outcome for verdict in verdicts)
    assert counts[REFUSED] and counts["alike"]
    assert form != "picture" or counts[OVERLY] <= MOST_OVERLY * (counts[OVERLY] + counts["alike"])
    assert max(verdict.seconds for verdict in verdicts) < 5


def around(content: bytes) -> list[int]:
    """Places of bytes in a PNG or JPEG that are not of pixels: in bodies of segments, and of chunks with checksums."""
    found, is_png = list[int](), content.startswith(b"\x89PNG")
    at = 8 if is_png else 2
    while at < len(content) and content[at : at + 2] != b"\xff\xda":
        if is_png:
            begin, end = at + 8, at + 12 + int.from_bytes(content[at : at + 4])
            needed = content[at + 4 : at + 5].isupper()
        else:
            begin, end = at + 4, at + 2 + int.from_bytes(content[at + 2 : at + 4])
            needed = not (content[at + 1] == 0xFE or 0xE0 <= content[at + 1] < 0xEE)
        found += [] if needed else range(begin, end)
        at = end
    return found


@pytest.mark.parametrize("sample", [0, 1], ids=["PNG", "JPEG"])
def test_what_is_around_pixels_refuses_none(sample: int, root: Path) -> None:
    whole = samples("picture")[sample]
    places = around(whole)
    assert len(places) > 50
    for number in range(100):
        draw = random.Random(number)
        content = bytearray(whole)
        for at in draw.sample(places, draw.choice((1, 4, 30))):
            content[at] = draw.randrange(256)
        assert judge("picture", bytes(content), root).outcome == "alike", number


def test_columns_of_a_row_group_that_differ_in_length_are_refused(root: Path) -> None:
    content = mutant("parquet", 2552, samples("parquet"))
    file = pq.ParquetFile(io.BytesIO(content))
    assert [file.read_row_group(2, columns=[name]).num_rows for name in ("image", "text")] == [0, 2]
    assert judge("parquet", content, root).outcome == "refused"


@pytest.mark.parametrize("form", FORMS)
def test_a_mutant_is_a_function_of_its_number(form: str) -> None:
    mutants = [[mutant(form, number, samples(form)) for number in range(20)] for _ in range(2)]
    assert mutants[0] == mutants[1] and len({*mutants[0]}) > 15


def test_what_is_wrong_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = samples("csv")[0]
    for told, outcome in (("a\nb", "not one line"), ("a\x1b[0m", "not one line"), ("a: b", OVERLY)):
        with monkeypatch.context() as patch:
            patch.setattr(judging, "_pairs", lambda *_, told=told: _raise(InputError(told)))
            assert judge("csv", content, root).outcome == outcome
    with monkeypatch.context() as patch:
        patch.setattr(Table, "read", lambda *_: _raise(KeyError("x")))
        assert judge("csv", content, root)[:2] == ("traceback", "KeyError: 'x'")
    with monkeypatch.context() as patch:
        patch.setattr(judging, "_pairs", lambda *_: warnings.warn("other", stacklevel=1))
        assert judge("csv", content, root).outcome == "warning"
    with monkeypatch.context() as patch:
        patch.setattr(judging, "_pairs", lambda *_: (warnings.warn("other", stacklevel=1), _raise(InputError("a: b"))))
        assert judge("csv", content, root).outcome == "warning"
    pairs = readers.pairs("csv", content)
    for others in (
        pairs[1:],
        [pairs[0]._replace(caption="other"), *pairs[1:]],
        [pairs[0]._replace(image="b"), *pairs[1:]],
    ):
        with monkeypatch.context() as patch:
            patch.setattr(readers, "pairs", lambda *_, others=others: others)
            assert judge("csv", content, root).outcome == "other pairs"
    with monkeypatch.context() as patch:
        patch.setattr(readers, "pairs", lambda *_: _raise(ValueError()))
        assert judge("csv", content, root).outcome == "read alone"
    seen = readers.picture(samples("picture")[1])
    assert seen is not None
    for other, outcome in ((seen[1:], "other pixels"), (255 - seen, "other pixels"), (None, "read alone")):
        with monkeypatch.context() as patch:
            patch.setattr(readers, "picture", lambda _, other=other: other)
            assert judge("picture", samples("picture")[1], root).outcome == outcome


def _raise(error: Exception) -> Any:
    raise error
