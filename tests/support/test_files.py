"""Files are whole or absent, and a broken one is named with what to do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptmst.errors import InputError
from ptmst.support import files


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_full_disk_leaves_what_was_there(
    where: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    if before is not None:
        path.write_bytes(before)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(InputError) as caught:
        files.write(path, b"new")
    expected = "cannot be written (No space left on device); free space or choose another output folder"
    assert str(caught.value) == f"{path}: {expected}"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if before is None else {"table.json": before})


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupted_write_leaves_what_was_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"table.json": b"old"}


def test_what_is_renamed_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "table.json", []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        order.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        order.append(("replace", source.stat().st_size))
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    assert files.write(path, b"content") == hashlib.sha256(b"content").hexdigest()
    assert order == [("fsync", 7), ("replace", 7)]
    assert path.read_bytes() == b"content"


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "table.json"
    files.write_json(path, {"name": "Zoë"})
    files.write_json(path, {"name": "Ada", "rows": [1, 2]})
    found = json.loads(path.read_text("utf-8"))
    assert re.fullmatch("[0-9a-f]{64}", found.pop("sha256"))
    assert found == {"name": "Ada", "rows": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    path = tmp_path / "out" / "table.json"
    message = rf"^{re.escape(str(path))}: cannot be written \(.+\); free space or choose another output folder$"
    with pytest.raises(InputError, match=message):
        files.write(path, b"new")
    assert (tmp_path / "out").read_bytes() == b"a file"


def test_tensors_come_back(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.safetensors", torch.randn(4, 6)
    tensors = {
        "b.strided": whole.T[::2],
        "c.leaf": whole.clone().requires_grad_(),
        "a.half": whole.half(),
        "d.index": torch.tensor([2**40]),
        "e.nothing": torch.zeros(0, 3),
        "f.scalar": torch.tensor(1.5),
    }
    digest = files.write_tensors(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    for found in (files.read_tensors(path, digest), files.read_tensors(path), load_file(path)):
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert files.write_tensors(path, dict(reversed(tensors.items()))) == digest


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_not_written(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "out" / "a.safetensors"
    bad = torch.ones(3, dtype=dtype)
    bad[1] = value
    with pytest.raises(InputError) as caught:
        files.write_tensors(path, {"fine": torch.ones(2), "leaf.x": bad})
    assert str(caught.value) == f"{path}: tensor leaf.x holds NaN or infinity; nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"fine": torch.ones(2), "leaf.x": torch.tensor([1.0, torch.nan])}, path)
    for digest in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
        with pytest.raises(InputError) as caught:
            files.read_tensors(path, digest)
        assert str(caught.value) == f"{path}: tensor leaf.x holds NaN or infinity; make the file again"


def test_other_content_than_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = files.write_tensors(path, {"x": torch.zeros(3)})
    content = path.read_bytes()
    for damaged in (content[:-1] + b"\1", content[:-1], b""):
        path.write_bytes(damaged)
        found = hashlib.sha256(damaged).hexdigest()
        with pytest.raises(InputError) as caught:
            files.read_tensors(path, digest)
        assert str(caught.value) == (
            f"{path}: expected SHA-256 {digest[:12]}…, found {found[:12]}… ({len(damaged)} bytes); "
            "the file is damaged: restore it or make it again"
        )


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_truncated_file(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(300)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    message = rf"^{re.escape(str(path))}: expected safetensors, found a damaged file \(.+\); make it again$"
    with pytest.raises(InputError, match=message):
        files.read_tensors(path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, None])
@pytest.mark.parametrize("shape", [(), (1,), (70_000,), (3, 40_000), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, shape: tuple[int, ...], bad: float | None) -> None:
    tensor = torch.full(shape, -3.0, dtype=dtype)
    if bad is not None and tensor.numel():
        tensor.view(-1)[tensor.numel() // 2] = bad
    assert files._finite(tensor) is bool(torch.isfinite(tensor).all())


def test_a_flipped_bit_without_an_index(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"x": torch.ones(300), "empty": torch.empty(0), "one": torch.tensor(3, dtype=torch.int8)})
    assert torch.equal(files.read_tensors(path)["x"], torch.ones(300))
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    message = "checksum mismatch: the file is damaged; restore it or make it again"
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}$"):
        files.read_tensors(path)


def test_a_missing_file_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError) as caught:
        files.read_tensors(path)
    assert str(caught.value) == f"{path}: cannot be read (No such file or directory); restore the file or make it again"


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"format": "ptmst-trajectory-store", "version": 2, "names": ["Zoë"], "scale": 1e-3}
    path = tmp_path / "store.json"
    assert files.write_json(path, value) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.read_json(path, "trajectory store", 2) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a trajectory store, found no such file; check the path"),
        ('{"format": "ptmst-traj', "expected a trajectory store in JSON, found a damaged file (Unterminated string"),
        ("", "expected a trajectory store in JSON, found a damaged file (Expecting value"),
        (b"\xff\xfe\xff", "expected a trajectory store in JSON, found a damaged file ("),
        ("[]", "expected a trajectory store, found something else; check the path"),
        ('{"version": 2}', "expected a trajectory store, found something else; check the path"),
        ('{"format": "ptmst-distilled-set", "version": 2}', "expected a trajectory store, found something else; check"),
        (
            '{"format": "ptmst-trajectory-store", "version": 3}',
            "expected version 2 of the trajectory store format, found 3; use the ptmst release that wrote it",
        ),
        (
            '{"format": "ptmst-trajectory-store"}',
            "expected version 2 of the trajectory store format, found None; use the ptmst release that wrote it",
        ),
    ],
)
def test_json_that_is_not_what_was_asked_for(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: {message}")):
        files.read_json(path, "trajectory store", 2)
