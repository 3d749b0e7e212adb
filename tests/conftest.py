"""What every test starts from: no network, at most two threads, a known seed, a cache folder of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is there: threads of one test would wait, spinning, for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: it decides at each kernel's decoration whether it interprets.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that are slow as a whole are not even imported where slow tests are left out."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    whole = re.search(r"^pytestmark = \[?pytest\.mark\.slow\b", collection_path.read_text("utf-8"), re.MULTILINE)
    return True if whole else None


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
