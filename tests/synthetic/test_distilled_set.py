"""The distilled set on disk and in memory, and as a torch dataset."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ptmst.errors import InputError
from ptmst.students.text_towers import nearest_captions
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity
from tiny import RECIPE

SIZES, WIDTH = (5, 7), 6


def similarity(form: str, n: int) -> Similarity:
    if form == "full":
        return FullSimilarity(torch.randn(n, n))
    return LowRankSimilarity(torch.randn(n), torch.randn(n, 2), torch.randn(n, 2), alpha=float(form))


def phase(n: int, form: str) -> DistilledPhase:
    pairs = SyntheticPairs(torch.randn(n, 3, 4, 4), torch.randn(n, WIDTH), similarity(form, n), torch.rand(2))
    captions = tuple(f"Bär {i} “ü”" for i in range(n))
    return DistilledPhase(pairs, torch.rand(2), captions, {"loss": torch.rand(9, 2), "lr": torch.rand(9, 2)})


def distilled(form: str = "full") -> DistilledSet:
    return DistilledSet(
        tuple(phase(n, form) for n in SIZES),
        {"method": "distilled", "seed": 3, "versions": {"torch": "2"}},
        RECIPE.to_json(),
        {"blocks.0.weight": torch.randn(3, 2)},
    )


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("form", ["full", "0.3", "3", "0"])
def test_every_bit_comes_back(tmp_path: Path, form: str) -> None:
    written = distilled(form)
    written.save(tmp_path / "set")
    found = DistilledSet.load(tmp_path / "set")
    assert (found.provenance, found.settings) == (written.provenance, written.settings)
    assert_equal(dict(found.tower or {}), dict(written.tower or {}))
    assert len(found.phases) == 2 and found.num_pairs == 12
    for ours, theirs in zip(found.phases, written.phases, strict=True):
        assert_equal(ours.pairs.leaves(), theirs.pairs.leaves())
        assert torch.equal(ours.pairs.similarity.dense(), theirs.pairs.similarity.dense())
        assert torch.equal(ours.last_lr, theirs.last_lr) and ours.captions == theirs.captions
        assert_equal(dict(ours.history), dict(theirs.history))


def test_a_set_without_a_tower_has_none(tmp_path: Path) -> None:
    distilled().save(tmp_path)
    replace(distilled(), tower=None).save(tmp_path)
    assert DistilledSet.load(tmp_path).tower is None


def test_rates_that_are_one_tensor_are_saved(tmp_path: Path) -> None:
    one = phase(5, "full")
    DistilledSet((replace(one, last_lr=one.pairs.lr, history={}),), {}, {}).save(tmp_path)
    (found,) = DistilledSet.load(tmp_path).phases
    assert torch.equal(found.last_lr, one.pairs.lr) and torch.equal(found.pairs.lr, one.pairs.lr)


def test_leaves_under_way_are_saved(tmp_path: Path) -> None:
    one = phase(5, "full")
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in one.pairs.leaves().items()}
    DistilledSet((replace(one, pairs=one.pairs.replace(leaves)),), {}, {}).save(tmp_path)
    assert_equal(DistilledSet.load(tmp_path)[0].leaves(), one.pairs.leaves())


def test_a_set_is_a_sequence_of_its_phases() -> None:
    found = distilled()
    assert len(found) == 2
    assert found[0] is found.phases[0].pairs and found[-1] is found.phases[1].pairs
    assert list(found) == [entry.pairs for entry in found.phases] == found[:] == found[0:9]
    assert found[1:] == [found.phases[1].pairs]
    with pytest.raises(IndexError):
        found[2]
    assert [len(pairs) for pairs in found] == list(SIZES)


@pytest.mark.parametrize("size", [2, 3, 100])
def test_an_epoch_of_batches_has_every_pair_once(size: int) -> None:
    found = distilled()
    assert found.inner_batch is None
    draws = torch.Generator().manual_seed(1)
    batches = list(found.batches(size, draws))
    for number, phase in enumerate(found.phases):
        pairs, mine = phase.pairs, [batch for batch in batches if batch.phase == number]
        order = [next(i for i in range(len(pairs)) if torch.equal(pairs.texts[i], t)) for b in mine for t in b.texts]
        assert sorted(order) == list(range(len(pairs))) and [len(b.texts) for b in mine[:-1]] == [size] * (
            len(mine) - 1
        )
        first = 0
        for batch in mine:
            index = order[first : first + len(batch.texts)]
            first += len(index)
            assert torch.equal(batch.images, pairs.images[index]) and torch.equal(batch.lr, pairs.lr)
            assert torch.equal(batch.similarity, pairs.similarity.dense()[index][:, index])
            assert batch.captions == tuple(phase.captions[i] for i in index)
    again = list(found.batches(size, torch.Generator().manual_seed(1)))
    assert all(torch.equal(a.texts, b.texts) for a, b in zip(batches, again, strict=True))


def test_batches_are_as_the_set_was_matched_and_normalized_as_asked() -> None:
    found = replace(distilled(), provenance={"config": {"batch_size": 2}})
    assert {len(batch.texts) for batch in found.batches(None, torch.Generator())} <= {1, 2}
    mean, std = found.normalization
    (first, *_), (other, *_) = (
        list(found.batches(2, torch.Generator().manual_seed(0), **asked))
        for asked in ({}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    )
    plain = first.images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    assert torch.allclose(other.images, plain, atol=1e-6)


def test_batches_of_a_progressive_set_have_the_pairs_before() -> None:
    found = replace(distilled(), provenance={"config": {"batch_size": 100, "progressive": True}})
    first, second = found.batches(None, torch.Generator().manual_seed(0))
    assert (len(first.texts), len(second.texts)) == (SIZES[0], sum(SIZES))
    assert set(second.captions) == {*found.phases[0].captions, *found.phases[1].captions}
    assert torch.equal(second.lr, found[1].lr)


def test_pairs_end() -> None:
    pairs = distilled()[0]
    assert [entry["index"] for entry in pairs] == list(range(5))
    with pytest.raises(IndexError):
        pairs[5]


@pytest.mark.parametrize("form", ["full", "0.3"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_takes_a_phase(tmp_path: Path, form: str, workers: int) -> None:
    distilled(form).save(tmp_path)
    pairs = DistilledSet.load(tmp_path)[1]
    dense = pairs.similarity.dense()
    seen = []
    for batch in DataLoader(pairs, batch_size=3, shuffle=True, num_workers=workers):
        index = batch["index"]
        seen += index.tolist()
        assert torch.equal(batch["image"], pairs.images[index]) and torch.equal(batch["text"], pairs.texts[index])
        labels = pairs.similarity.batch(index)
        for i, row in enumerate(index.tolist()):
            for j, column in enumerate(index.tolist()):
                assert labels[i, j].item() == pytest.approx(dense[row, column].item(), rel=1e-5)
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize("name", ["phase-1.safetensors", "phase-2.safetensors", "tower.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "short", "absent"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, how: str) -> None:
    distilled().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    message = r"expected SHA-256 \w{12}…, found \w{12}… .+ the file is damaged: restore it or make it again"
    if how == "flipped":
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "short":
        (tmp_path / name).write_bytes(content[:-1])
    else:
        (tmp_path / name).unlink()
        message = r"cannot be read \(No such file or directory\); restore the file"
    with pytest.raises(InputError, match=f"{name}: {message}"):
        DistilledSet.load(tmp_path)


def test_a_folder_without_an_index_is_no_set(tmp_path: Path) -> None:
    distilled().save(tmp_path)
    (tmp_path / "distilled.json").unlink()
    with pytest.raises(InputError, match=r"expected a distilled set, found no distilled.json; make one with `ptmst di"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a distilled set in JSON, found a damaged file"),
        ("{}", "expected a distilled set, found something else; check the path"),
        (
            '{"format": "ptmst-distilled-set", "version": 9}',
            "expected version 1 or 2 of the distilled set format, found 9; use the ptmst release that wrote it",
        ),
    ],
)
def test_another_index_is_refused(tmp_path: Path, content: str, message: str) -> None:
    distilled().save(tmp_path)
    (tmp_path / "distilled.json").write_text(content)
    with pytest.raises(InputError, match=f"distilled.json: {message}"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda index, key=key: index.pop(key) for key in ("phases", "provenance", "settings", "hashes")),
        *(lambda index, key=key: index["phases"][1].pop(key) for key in ("file", "alpha", "captions")),
        lambda index: index["hashes"].pop("phase-2.safetensors"),
        lambda index: index.update(phases=[1]),
        lambda index: index.update(phases=None),
    ],
)
def test_an_index_with_a_gap_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    distilled().save(tmp_path)
    file = tmp_path / "distilled.json"
    index = json.loads(file.read_text())
    del index["sha256"]
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"distilled\.json: expected a whole index, found a damaged one \(.+\); run"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize("leaf", ["images", "texts", "similarity", "lr"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_leaves_that_are_not_finite_make_no_set(tmp_path: Path, leaf: str, bad: float) -> None:
    broken = distilled()
    broken[1].leaves()[leaf].view(-1)[0] = bad
    with pytest.raises(InputError, match=f"phase-2.safetensors: tensor {leaf} holds NaN or infinity; nothing was"):
        broken.save(tmp_path)
    assert not (tmp_path / "phase-2.safetensors").exists()
    with pytest.raises(InputError, match=r"found no distilled\.json"):
        DistilledSet.load(tmp_path)


def test_a_half_written_set_over_another_is_not_taken_for_one(tmp_path: Path) -> None:
    distilled().save(tmp_path)
    broken = distilled()
    broken[1].texts[0, 0] = torch.nan
    with pytest.raises(InputError, match="nothing was written"):
        broken.save(tmp_path)
    with pytest.raises(InputError, match=r"phase-1\.safetensors: expected SHA-256"):
        DistilledSet.load(tmp_path)


@pytest.mark.parametrize("count", [1, 40])
def test_nearest_captions(count: int) -> None:
    draw = np.random.default_rng(count)
    texts, real = draw.normal(size=(9, WIDTH)), draw.normal(size=(count, WIDTH)) * draw.uniform(0.1, 9, (count, 1))
    captions = [f"caption {i}" for i in range(count)]
    expected = []
    for text in texts:
        cosines = [text @ other / np.linalg.norm(text) / np.linalg.norm(other) for other in real]
        expected.append(captions[int(np.argmax(cosines))])
    leaf = torch.from_numpy(texts).float().requires_grad_()
    assert nearest_captions(leaf, torch.from_numpy(real).float(), captions) == tuple(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilled.json", "phase-2.safetensors", "tower.safetensors"])
def test_no_flipped_bit_goes_unseen(tmp_path: Path, name: str) -> None:
    """A thousand of them in each kind of file: named, or without consequence."""
    written = distilled("0.3")
    written.save(tmp_path)
    file = tmp_path / name
    whole, draw, seen = file.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(broken))
        try:
            found = DistilledSet.load(tmp_path)
        except InputError:
            seen += 1
            continue
        assert name == "distilled.json"
        assert (found.provenance, found.settings) == (written.provenance, written.settings)
        for ours, theirs in zip(found.phases, written.phases, strict=True):
            assert ours.captions == theirs.captions
            assert_equal(ours.pairs.leaves(), theirs.pairs.leaves())
            assert torch.equal(ours.pairs.similarity.dense(), theirs.pairs.similarity.dense())
    assert seen >= 970
