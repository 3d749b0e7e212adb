"""The trajectory store: what comes back is what went in, or a message says why not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ptmst.config import Coding
from ptmst.errors import InputError
from ptmst.students.heads import drawn_head
from ptmst.students.layers import LayerTable
from ptmst.support import folders
from ptmst.trajectories import coding
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.shortcut import Displacement, Expert
from ptmst.trajectories.store import FOLDER, TrajectoryStore, base_files
from tiny import RECIPE

TABLE = LayerTable(("image.a", "image.b", "text.c"), ((5, 3), (), (7,)), (0, 0, 1))
EPOCHS, KEPT = 4, (2, 3)


def expert(base: Tensor, layers: LayerTable = TABLE) -> Expert:
    moves = {k: Displacement.encode(0.1 * torch.randn(layers.num_params), layers) for k in KEPT}
    return Expert(layers, base, moves, torch.rand(EPOCHS, layers.num_layers))


def new_store(path: Path, layers: LayerTable = TABLE) -> TrajectoryStore:
    return TrajectoryStore(path, layers, EPOCHS, KEPT, RECIPE.to_json())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two experts that start alike."""
    base = torch.randn(TABLE.num_params)
    store = new_store(tmp_path / "store")
    for number in (0, 3):
        store.add(number, expert(base), {"losses": [3.0, 2.0, 1.0, 0.5]})
    return store.path


def names(path: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in path.glob(pattern))


def rewrite(path: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change a file's tensors, and its hash in the index with them."""
    tensors = load_file(path / name)
    change(tensors)
    replace(path, name, save(tensors))


def replace(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)
    mend(path, lambda index: index["hashes"].update({name: hashlib.sha256(content).hexdigest()}))


def mend(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an index, and drop the hash of its content with that."""
    index = json.loads((path / "store.json").read_text())
    del index["sha256"]
    change(index)
    (path / "store.json").write_text(json.dumps(index))


def test_every_bit_comes_back(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    base = torch.randn(TABLE.num_params)
    written = {number: expert(base + number) for number in (0, 7)}
    for number, record in written.items():
        store.add(number, record, {"losses": [1.5]})
    store.add_file("tower.safetensors", {"w": base})
    store.save_index()
    again = TrajectoryStore.open(tmp_path)
    assert (again.layers, again.epochs, again.endpoints, again.settings) == (TABLE, EPOCHS, KEPT, store.settings)
    assert len(again) == 2 and again.experts[7]["losses"] == [1.5]
    assert torch.equal(again.read_file("tower.safetensors")["w"], base)
    for number, expected in written.items():
        found = again.expert(number)
        assert found.layers == TABLE and tuple(found.displacements) == KEPT
        pairs = [(found.base, expected.base), (found.step_norms, expected.step_norms)]
        for k in KEPT:
            a, b = found.displacements[k], expected.displacements[k]
            pairs += [(a.values, b.values), (a.scale, b.scale), (a.norms, b.norms)]
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_store_goes_on_where_it_was_closed(path: Path) -> None:
    store = TrajectoryStore.open(path)
    store.add(1, expert(store.expert(0).base), {"losses": []})
    again = TrajectoryStore.open(path)
    assert list(again.experts) == [0, 1, 3]
    assert again.fingerprint == store.fingerprint
    assert torch.equal(again.expert(1).base, again.expert(3).base)


def test_equal_starts_are_stored_once_group_by_group(path: Path) -> None:
    assert [len(names(path, f"base-{group}-*")) for group in ("image", "text")] == [1, 1]
    store = TrajectoryStore.open(path)
    base = store.expert(0).base.clone()
    base[-1] += 1
    store.add(4, expert(base), {})
    assert [len(names(path, f"base-{group}-*")) for group in ("image", "text")] == [1, 2]
    again = TrajectoryStore.open(path)
    assert torch.equal(again.expert(4).base, base)
    assert not torch.equal(again.expert(0).base, base)


HEADS = LayerTable(
    tuple(f"{group}.{layer}" for group in ("image", "text") for layer in ("pw", "pb", "fw", "fb", "nw", "nb")),
    ((4, 5), (4,), (4, 4), (4,), (4,), (4,), (4, 7), (4,), (4, 4), (4,), (4,), (4,)),
    (0,) * 6 + (1,) * 6,
)


def drawn(key: tuple[int | str, ...], group: str) -> Tensor:
    first, end = HEADS.layers_of_group[HEADS.group_names.index(group)]
    start = drawn_head(HEADS.shapes[first:end], (*key, group))
    assert start is not None
    return start


def test_heads_that_were_drawn_are_drawn_again(tmp_path: Path) -> None:
    """Group by group, and only where they are what their key draws."""
    key = (3, "expert", 0)
    starts = [torch.cat([drawn(key, "image"), drawn(key, "text")])]
    starts.append(torch.cat([starts[0][: HEADS.group_sizes[0]] + 1, drawn(key, "text")]))
    store = new_store(tmp_path, HEADS)
    for number, start in enumerate(starts):
        store.add(number, expert(start, HEADS), {}, key)
    store.add(2, expert(starts[0], HEADS), {})
    again = TrajectoryStore.open(tmp_path)
    for number, start in enumerate([*starts, starts[0]]):
        assert torch.equal(again.expert(number).base, start)
    files = [sorted(base_files(again.experts[number]["bases"])) for number in range(3)]
    assert [len(found) for found in files] == [0, 1, 2] and not again.damaged()
    assert len(names(tmp_path, "base-*")) == 3
    text = {"drawn": [*key, "text"], "sha256": hashlib.sha256(drawn(key, "text").numpy().tobytes()).hexdigest()}
    assert again.experts[1]["bases"]["text"] == again.experts[0]["bases"]["text"] == text


@pytest.mark.parametrize(
    "change", [{"drawn": [4, "expert", 0, "text"]}, {"sha256": "0" * 64}, {"drawn": [3, "expert", 0, "image"]}]
)
def test_a_start_that_does_not_come_back_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    key = (3, "expert", 0)
    store = new_store(tmp_path, HEADS)
    store.add(0, expert(torch.cat([drawn(key, "image"), drawn(key, "text")]), HEADS), {}, key)
    before = store.fingerprint
    mend(tmp_path, lambda index: index["experts"]["0"]["bases"]["text"].update(change))
    again = TrajectoryStore.open(tmp_path)
    with pytest.raises(InputError, match=r"store.json: expected the text group to start with SHA-256 \w{12}…"):
        again.expert(0)
    assert ("sha256" in change) == (again.fingerprint != before)


def test_the_disk_holds_two_bytes_a_parameter_and_end_point(tmp_path: Path) -> None:
    layers = LayerTable(("image.a", "text.b"), ((300, 500), (200, 250)), (0, 1))
    base, count = torch.randn(layers.num_params), layers.num_params
    store = new_store(tmp_path, layers)
    store.add(0, expert(base, layers), {})
    one = store.bytes
    assert one == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert one == pytest.approx(count * (2 * len(KEPT) + 4), rel=0.01)
    store.add(1, expert(base, layers), {})
    assert store.bytes - one == pytest.approx(count * 2 * len(KEPT), rel=0.01)
    store.add(2, expert(base + 1, layers), {})
    assert store.bytes == pytest.approx(count * (3 * 2 * len(KEPT) + 2 * 4), rel=0.01)


def test_the_fingerprint_names_the_content(tmp_path: Path) -> None:
    base = torch.randn(TABLE.num_params)
    records = [expert(base), expert(base)]
    found = []
    for folder, numbers in (("a", (0, 1)), ("b", (0, 1)), ("c", (1, 0)), ("d", (0, 0))):
        store = new_store(tmp_path / folder)
        for number, of in enumerate(numbers):
            store.add(number, records[of], {})
        found.append(store.fingerprint)
        assert TrajectoryStore.open(store.path).fingerprint == store.fingerprint
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("pattern", ["expert-003.*", "base-image-*", "base-text-*"])
@pytest.mark.parametrize("how", ["flipped", "short", "absent", "no safetensors", "NaN"])
def test_a_damaged_file_is_refused(path: Path, pattern: str, how: str) -> None:
    (name,) = names(path, pattern)
    file = path / name
    content = file.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        message = (
            rf"expected SHA-256 \w{{12}}…, found \w{{12}}… \({len(content):,} bytes\); the file is damaged: restore"
        )
    elif how == "short":
        file.write_bytes(content[:-10])
        message = rf"expected SHA-256 \w{{12}}…, found \w{{12}}… \({len(content) - 10:,} bytes\); the file is damaged"
    elif how == "absent":
        file.unlink()
        message = r"cannot be read \(No such file or directory\); restore the file or make it again"
    elif how == "no safetensors":
        replace(path, name, content[: len(content) // 2])
        message = r"expected safetensors, found a damaged file \(.+\); make it again"
    else:
        key = "base" if "base" in name else "scale.3"
        rewrite(path, name, lambda tensors: tensors[key].view(-1)[-1:].fill_(torch.nan))
        message = f"tensor {key} holds NaN or infinity; make the file again"
    store = TrajectoryStore.open(path)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        store.expert(3)


def test_another_expert_is_not_harmed(path: Path) -> None:
    (path / "expert-003.safetensors").unlink()
    assert torch.equal(TrajectoryStore.open(path).expert(0).base, new_base(path))


def new_base(path: Path) -> Tensor:
    return torch.cat([load_file(path / names(path, f"base-{group}-*")[0])["base"] for group in ("image", "text")])


def test_an_expert_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"store: expected experts \[0, 3\], found none numbered 1"):
        TrajectoryStore.open(path).expert(1)


def test_a_folder_without_an_index_is_no_store(path: Path) -> None:
    (path / "store.json").unlink()
    message = "store: expected a trajectory store, found no store.json; make one with `ptmst teach`"
    for folder in (path, path / "nowhere" / "store"):
        with pytest.raises(InputError, match=message):
            TrajectoryStore.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a trajectory store in JSON, found a damaged file"),
        ("\x00\xff", "expected a trajectory store in JSON, found a damaged file"),
        ("[]", "expected a trajectory store, found something else; check the path"),
        ('{"format": "ptmst-distilled-set", "version": 1}', "expected a trajectory store, found something else"),
        (
            '{"format": "ptmst-trajectory-store", "version": 4}',
            "expected version 1, 2 or 3 of the trajectory store format, found 4; use the ptmst release that wrote it",
        ),
        (
            '{"format": "ptmst-trajectory-store"}',
            "expected version 1, 2 or 3 of the trajectory store format, found None",
        ),
    ],
)
def test_another_index_is_refused(path: Path, content: str, message: str) -> None:
    (path / "store.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"store.json: {message}"):
        TrajectoryStore.open(path)


@pytest.mark.parametrize("key", ["layers", "epochs", "endpoints", "settings", "experts", "hashes"])
def test_an_index_with_a_gap_is_refused(path: Path, key: str) -> None:
    mend(path, lambda index: index.pop(key))
    with pytest.raises(InputError, match=rf"store\.json: expected a whole index, found a damaged one \('{key}'\)"):
        TrajectoryStore.open(path)


@pytest.mark.parametrize("value", [3, "x", [1], None, {"names": []}])
def test_an_index_of_other_layers_is_refused(path: Path, value: object) -> None:
    mend(path, lambda index: index.update(layers=value))
    with pytest.raises(InputError, match=r"store\.json: expected a whole index, found a damaged one \(.+\); run"):
        TrajectoryStore.open(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["experts"]["3"].pop("file"),
        lambda index: index["experts"]["3"].pop("bases"),
        lambda index: index["experts"]["3"]["bases"].pop("text"),
        lambda index: index["endpoints"].append(4),
    ],
    ids=["file", "bases", "base", "endpoint"],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    mend(path, change)
    with pytest.raises(InputError, match=r"store\.json: expected a whole index, found a damaged one \(.+\); run"):
        TrajectoryStore.open(path).expert(3)


def test_a_file_without_a_hash_is_refused(path: Path) -> None:
    mend(path, lambda index: index["hashes"].pop("expert-003.safetensors"))
    with pytest.raises(InputError, match=r"expert-003\.safetensors: expected a hash in store\.json, found none; run"):
        TrajectoryStore.open(path).expert(3)


@pytest.mark.parametrize("pattern", ["expert-003.*", "base-image-*"])
def test_files_of_other_layers_are_refused(path: Path, pattern: str) -> None:
    (name,) = names(path, pattern)

    def shorten(tensors: dict[str, Tensor]) -> None:
        key = "base" if "base" in tensors else "step_norms"
        tensors[key] = tensors[key][1:].contiguous()

    rewrite(path, name, shorten)
    message = re.escape(f"{name}: expected the layers of store.json, found different ones")
    with pytest.raises(InputError, match=message):
        TrajectoryStore.open(path).expert(3)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells how much memory a process has held")
def test_loading_an_expert_takes_about_its_size(tmp_path: Path) -> None:
    """In a process of its own, whose memory is given back at once."""
    layers = LayerTable(tuple(f"image.{n}" for n in range(64)), ((250_000,),) * 64, (0,) * 64, ("image",))
    recorder, theta = Recorder(layers, (1,)), torch.randn(layers.num_params)
    for step in range(2):
        recorder.record(theta + 0.01 * step)
    codings: tuple[Coding, ...] = get_args(Coding)
    for how in codings:
        (tmp_path / how).mkdir()
        TrajectoryStore(tmp_path / how, layers, 1, (1,), {}, how).add(0, recorder.expert(), {})
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, *(str(tmp_path / how) for how in codings)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert all(0.9 < float(times) < 1.3 for times in said.split()), said


LOAD = """
import sys
from ptmst import TrajectoryStore
from ptmst.support.memory import peak_memory
for path in sys.argv[1:]:
    store = TrajectoryStore.open(path)
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        expert = store.expert(0)
    held = (expert.base, *(t for d in expert.displacements.values() for t in (d.values, d.scale, d.norms)))
    print((peak[0] - before[0]) / sum(t.nbytes for t in held))
    del expert, held, store
"""


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_written(path: Path, bad: float) -> None:
    store = TrajectoryStore.open(path)
    record = expert(store.expert(0).base.clone())
    record.displacements[3].values[0] = bad
    with pytest.raises(InputError, match=r"expert-005\.safetensors: tensor values\.3 holds NaN or infinity; nothing"):
        store.add(5, record, {})
    assert not (path / "expert-005.safetensors").exists()
    assert list(TrajectoryStore.open(path).experts) == [0, 3]


def test_no_temporary_file_is_left(path: Path) -> None:
    assert not [file for file in path.iterdir() if file.name.startswith(".") or file.suffix == ".part"]


# Codings


ERRORS = {"fp16": (0.0, 0.0), "int8": (5e-3, 9e-3), "int4": (0.08, 0.2)}


def test_codings_take_a_half_and_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    layers = LayerTable(("image.a", "image.b", "text.b"), ((300, 500), (3,), (200, 250)), (0, 0, 1))
    written = expert(torch.randn(layers.num_params), layers)
    sizes = {}
    for name in get_args(Coding):
        store = TrajectoryStore(tmp_path / name, layers, EPOCHS, KEPT, {}, name)
        store.add(0, written, {})
        again = TrajectoryStore.open(store.path)
        assert again.coding == name
        found = again.expert(0)
        sizes[name] = sum(file.stat().st_size for file in store.path.glob("expert-*"))
        for k in KEPT:
            exact, ours = written.displacements[k], found.displacements[k]
            blocks = [part.decode(layers).double() for part in (exact, ours)]
            error = float((blocks[1] - blocks[0]).norm() / blocks[0].norm())
            assert ERRORS[name][0] <= error <= ERRORS[name][1]
            norms = torch.stack([part.norm() for part in blocks[1].split(layers.sizes)])
            assert torch.allclose(ours.norms.double(), norms, rtol=1e-5)
    parameters = layers.num_params * len(KEPT)
    assert sizes["fp16"] == pytest.approx(2 * parameters, rel=0.01)
    assert sizes["int8"] == pytest.approx((1 + 4 / 256) * parameters, rel=0.01)
    assert sizes["int4"] == pytest.approx((1 / 2 + 4 / 256) * parameters, rel=0.02)


def test_int8_by_brute_force() -> None:
    """Block by block in float64: codes are the nearest of 255 steps, and a layer that never moves stays."""
    layers = LayerTable(("image.a", "image.b", "text.c"), ((300,), (256,), (7,)), (0, 0, 1))
    delta = torch.randn(563)
    delta[300:556] = 0
    moved = Displacement.encode(delta, layers)
    packed = {name.removesuffix(".1"): part for name, part in coding.packed({1: moved}, layers, "int8").items()}
    begins = [0, 256, 300, 556]
    assert packed["codes"].dtype == torch.int8 and packed["scale"].shape == (4,)
    exact = moved.decode(layers).double()
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], 563], strict=True)):
        part = exact[begin:end]
        step = float(part.abs().max()) / 127
        assert float(packed["scale"][number]) == pytest.approx(step, rel=1e-6)
        found = packed["codes"][begin:end].double() * step
        assert bool((abs(found - part) <= step * 0.5001).all())
    again = coding.unpacked({f"{name}.1": part for name, part in packed.items()}, layers, "int8", (1,), (1,))[1]
    assert torch.equal(again.values[300:556], torch.zeros(256).half())


def nibbles(written: Mapping[str, torch.Tensor], k: int, sizes: Sequence[int]) -> list[float]:
    """What an end point adds, read number by number as docs/formats.md says."""
    codes, scales = written[f"codes.{k}"].tolist(), iter(written[f"scale.{k}"].tolist())
    out: list[float] = []
    for size in sizes:
        scale, byte = 0.0, 0
        for place in range(size):
            scale = next(scales) if place % 256 == 0 else scale
            byte = codes.pop(0) if place % 2 == 0 else byte >> 4
            out.append(((byte & 15) - 8) * scale)
    assert not codes and next(scales, None) is None
    return out


def test_int4_by_brute_force() -> None:
    """An end point is what those before it and its own codes add up to, whichever are asked for."""
    layers = LayerTable(("image.a", "image.b", "text.c"), ((301,), (256,), (7,)), (0, 0, 1))
    draw = torch.Generator().manual_seed(0)
    steps = torch.randn(4, layers.num_params, generator=draw) * torch.tensor([1.0, 0.1, 0.01, 0.1])[:, None]
    steps[:, 301:557] = 0
    moved = {k: Displacement.encode(steps[:n].sum(0), layers) for n, k in enumerate((1, 3, 4, 9), start=1)}
    written = coding.packed(moved, layers, "int4")
    assert written["codes.3"].dtype == torch.uint8 and written["codes.3"].shape == (151 + 128 + 4,)
    expected, error = torch.zeros(layers.num_params, dtype=torch.float64), 0.0
    whole = coding.unpacked(written, layers, "int4", (1, 3, 4, 9), (1, 3, 4, 9))
    for step, (k, exact) in zip(steps, moved.items(), strict=True):
        expected += torch.tensor(nibbles(written, k, layers.sizes), dtype=torch.float64)
        torch.testing.assert_close(whole[k].decode(layers).double(), expected, rtol=5e-4, atol=1e-6)
        assert bool((whole[k].decode(layers)[301:557] == 0).all())
        # Of the last move and of what was wrong before it: errors do not add up.
        found = float((expected - exact.decode(layers).double()).norm())
        assert 0.05 * float(step.norm()) < found < 0.2 * (error + float(step.norm()))
        error = found
        (alone,) = coding.unpacked(
            {name: part for name, part in written.items() if int(name.rpartition(".")[2]) <= k},
            layers,
            "int4",
            (1, 3, 4, 9),
            (k,),
        ).values()
        assert torch.equal(alone.values, whole[k].values) and torch.equal(alone.norms, whole[k].norms)
    assert coding.needed("int4", (1, 3, 4, 9), (4, 1)) == [1, 3, 4] and coding.needed("int8", (1, 3, 9), (9,)) == [9]


def test_an_int4_scale_errs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than with any of the scales that are tried, and than one that reaches the largest value."""
    layers = LayerTable(("a",), ((256,),), (0,), ("image",))
    delta = torch.randn(256, generator=torch.Generator().manual_seed(2))
    moved = {1: Displacement.encode(delta, layers)}

    def error() -> float:
        found = coding.unpacked(coding.packed(moved, layers, "int4"), layers, "int4", (1,), (1,))[1]
        return float((found.decode(layers) - delta).norm() / delta.norm())

    tried, errors = coding._FINER, []
    best = error()
    for share in tried:
        monkeypatch.setattr(coding, "_FINER", (share,))
        errors.append(error())
    assert best == pytest.approx(min(errors)) and best < 0.95 * errors[0]


def test_a_store_of_version_1_is_read(path: Path) -> None:
    """As it was written before there were codings, and without a hash of the index."""
    before = TrajectoryStore.open(path).expert(3)
    mend(path, lambda index: (index.update(version=1), index.pop("coding")))
    store = TrajectoryStore.open(path)
    assert store.coding == "fp16"
    assert torch.equal(store.expert(3).displacements[2].values, before.displacements[2].values)


def test_an_unknown_coding_is_refused(path: Path) -> None:
    mend(path, lambda index: index.update(coding="int2"))
    with pytest.raises(
        InputError, match=r"store.json: expected coding fp16, int8, int4, found int2; use the ptmst rel"
    ):
        TrajectoryStore.open(path)


def test_end_points_are_read_alone(path: Path) -> None:
    store = TrajectoryStore.open(path)
    whole = store.expert(0)
    for asked, found in (((), ()), ((3,), (3,)), ((2, 3), (2, 3)), ((3, 9), (3,))):
        part = store.expert(0, asked)
        assert tuple(part.displacements) == found
        assert all(torch.equal(part.displacements[k].values, whole.displacements[k].values) for k in found)


def test_a_file_that_changes_later_is_checked_again(path: Path) -> None:
    store = TrajectoryStore.open(path)
    store.expert(0)
    file = path / "expert-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match="the file is damaged: restore it or make it again"):
        store.expert(0, (2,))


# Faults


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store.json", "expert-003.safetensors", "base-*"])
def test_no_flipped_bit_goes_unseen(path: Path, name: str) -> None:
    """A thousand of them in each kind of file: named, or without consequence."""
    (file,) = path.glob(name if name != "base-*" else "base-image-*")
    whole = file.read_bytes()
    store = TrajectoryStore.open(path)
    expected, index = store.expert(3), json.loads((path / "store.json").read_text())
    draw, seen = random.Random(0), 0
    for _ in range(1000):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        file.write_bytes(bytes(broken))
        try:
            again = TrajectoryStore.open(path)
            found = again.expert(3)
        except InputError:
            seen += 1
            continue
        assert name == "store.json", (place, bit)
        assert (again.layers, again.settings, again.endpoints) == (store.layers, store.settings, store.endpoints)
        assert again.experts == {int(number): entry for number, entry in index["experts"].items()}
        assert torch.equal(found.base, expected.base) and torch.equal(found.step_norms, expected.step_norms)
    assert seen >= 980


@pytest.mark.parametrize("name", ["store.json", "expert-003.safetensors", "base-image-*"])
def test_no_truncation_goes_unseen(path: Path, name: str) -> None:
    """In the header's length, the header, the data, and at the very end."""
    (file,) = path.glob(name)
    whole = file.read_bytes()
    for kept in {0, 1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 9, len(whole) - 2}:
        file.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=re.escape(file.name)):
            TrajectoryStore.open(path).expert(3)
    file.write_bytes(whole)
    assert len(TrajectoryStore.open(path).expert(3).base) == TABLE.num_params


def test_a_crash_between_write_and_rename_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrajectoryStore.open(path)
    base = store.expert(0).base

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for after in (0, 1):  # of the expert's file, and of the index that names it
        calls = iter([os.replace] * after + [crash] * 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *names, calls=calls: next(calls)(*names))
            with pytest.raises(KeyboardInterrupt):
                TrajectoryStore.open(path).add(5, expert(base), {})
        again = TrajectoryStore.open(path)
        assert sorted(again.experts) == [0, 3]
        assert torch.equal(again.expert(3).base, base)
        assert not list(path.glob(".*.part"))


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from ptmst.support import folders; from ptmst.trajectories.store import FOLDER\n"
        "try:\n    with folders.claimed(pathlib.Path(sys.argv[1]), FOLDER): print('claimed')\n"
        "except Exception as error: print(error)"
    )

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.strip()

    with folders.claimed(tmp_path, FOLDER):
        message = r"another process is writing a trajectory store here \(.+\); wait for its end, or .+ --out"
        assert re.fullmatch(re.escape(f"{tmp_path}: ") + message, other())
    assert other() == "claimed"
    assert list(tmp_path.iterdir()) == []
