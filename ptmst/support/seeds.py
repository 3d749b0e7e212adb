"""Counter-based randomness: every draw is a pure function of (seed, what it is for, its number).

No generator lives across steps, so a resumed run needs no generator state to continue with the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(*key: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, such as `generator(seed, "expert", 3, 7)`."""
    return torch.Generator().manual_seed(_mix(*key))


@contextmanager
def seeded(*key: str | int) -> Iterator[None]:
    """Run module constructors, which draw from torch's global generator, without touching its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mix(*key))
        yield


def _mix(*key: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little", signed=True)
