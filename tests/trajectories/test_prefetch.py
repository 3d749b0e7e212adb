"""Experts in memory or read ahead: the same trajectories, and no more of them than there is room for."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import torch

from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.support import devices
from ptmst.trajectories.prefetch import ExpertCache, expert_bytes
from ptmst.trajectories.shortcut import Displacement, Expert, Trajectory
from ptmst.trajectories.store import TrajectoryStore

TABLE = LayerTable(("image.a", "text.b"), ((300,), (200,)), (0, 1))
CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    made = TrajectoryStore(tmp_path, TABLE, 3, (2, 3), {})
    for number in range(4):
        moves = {k: Displacement.encode(torch.randn(500), TABLE) for k in (2, 3)}
        made.add(number, Expert(TABLE, torch.randn(500), moves, torch.rand(3, 2)), {})
    return TrajectoryStore.open(tmp_path)


class Reads:
    """How an expert becomes a trajectory; remembers who was read, and on which thread."""

    def __init__(self) -> None:
        self.count, self.threads = 0, set[str]()

    def __call__(self, expert: Expert) -> Trajectory:
        self.count += 1
        self.threads.add(threading.current_thread().name)
        return expert.shortcut(3)


ORDER = [0, 2, 2, 1, 3, 0, 1, 1, 2]


def walk(cache: ExpertCache, store: TrajectoryStore) -> None:
    for here, following in zip(ORDER, [*ORDER[1:], None], strict=True):
        found = cache.get(here, prefetch=following).point(3)
        assert torch.equal(found, store.expert(here).shortcut(3).point(3))


def test_where_all_fit_each_is_read_once(store: TrajectoryStore) -> None:
    reads = Reads()
    with ExpertCache(store, reads, (3,), CPU, room=4 * expert_bytes(500, 1)) as cache:
        assert cache.resident
        walk(cache, store)
    assert reads.count == 4


def test_where_they_do_not_fit_one_is_read_ahead(store: TrajectoryStore) -> None:
    reads = Reads()
    with ExpertCache(store, reads, (3,), CPU, room=4 * expert_bytes(500, 1) - 1) as cache:
        assert not cache.resident
        walk(cache, store)
        assert len(cache._kept) == 1 and len(cache._ahead) <= 1
    assert reads.count == sum(a != b for a, b in itertools.pairwise(ORDER)) + 1
    assert any(name.startswith("expert") for name in reads.threads)


def test_the_next_is_there_when_it_is_asked_for(store: TrajectoryStore) -> None:
    reads = Reads()
    with ExpertCache(store, reads, (3,), CPU, room=0) as cache:
        cache.get(0, prefetch=1)
        cache._ahead[1].result(timeout=30)
        before = reads.count
        cache.get(1)
        assert reads.count == before == 2


def test_a_damaged_expert_is_named_where_it_is_used(store: TrajectoryStore) -> None:
    (store.path / "expert-001.safetensors").write_bytes(b"nothing")
    with ExpertCache(store, Reads(), (3,), CPU) as cache:
        cache.get(0, prefetch=1)
        with pytest.raises(InputError, match=r"expert-001.safetensors: expected SHA-256"):
            cache.get(1)


def test_free_memory_is_that_of_the_host() -> None:
    free = devices.free_bytes(CPU)
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1])
    assert 0 < free <= 1024 * total


@pytest.mark.parametrize(("limit", "free"), [("9000", 9000 - 8000 + 700 + 50), ("100", 0), ("max", None)])
def test_a_containers_limit_counts_but_not_the_files_it_has_read(
    tmp_path: Path, limit: str, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "anon 7000\nfile 800\ninactive_file 700\nactive_file 50\nunevictable 0\n"
    for name, value in (("max", limit), ("current", "8000"), ("stat", kept)):
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    monkeypatch.setattr(devices, "_CONTAINER", tmp_path)
    found = devices.free_bytes(CPU)
    assert found > 1 << 20 if free is None else found == free
